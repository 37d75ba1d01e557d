"""What adapters cost in time and memory, ours beside PEFT's: `python -m benchmarks.speed --help`."""
