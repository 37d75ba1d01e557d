"""Tasks: what a model reads, what it should write, how that is scored; from generators, JSONL files or the Hub."""
