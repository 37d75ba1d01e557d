"""The microscope: what a trained update dW looks like, and whether it has clusters. Needs no run, no record."""
