"""Tasks from generators, JSONL files or the Hub: what a model reads, should write, and how that is scored."""
