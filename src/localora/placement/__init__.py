"""Where in a weight matrix an adapter may act: partitions, budgets, planners. Maths alone: no layers, no training."""
