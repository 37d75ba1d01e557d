"""What a model knows: loss on held-out completions, and task scores."""
