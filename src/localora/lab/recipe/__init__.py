"""Recipes: what a run is, as validated YAML. Nothing here loads, trains or measures."""
