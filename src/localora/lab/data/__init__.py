"""Tasks from generators, files or the Hub: what a model reads, should write, how that is scored. No model here."""
