"""Where in a weight matrix an adapter may act: partitions, their budget, and the planners that find them."""
