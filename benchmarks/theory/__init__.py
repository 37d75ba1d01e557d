"""The claim about clustered subspaces, on planted teachers: `python -m benchmarks.theory --help`."""
