"""What a run is, as validated YAML, and every default of it. Nothing here loads, trains or measures."""
