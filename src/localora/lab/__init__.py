"""Experiments with the core: recipes, data, training, evaluation, comparison, reports. The core never imports this."""
