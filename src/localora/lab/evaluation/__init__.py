"""What a model knows: loss on held-out completions, task scores, published tasks. Nothing is trained here."""
