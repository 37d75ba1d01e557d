"""What one re-partition of a Llama-3-8B costs: `python -m benchmarks.repartition_cost --help`."""
