"""Generated answers a second: our batched generation beside plain `model.generate`, one prompt after the other."""
