"""Published tasks of three families by name: commonsense, math, code. From local files, or from the Hub."""
