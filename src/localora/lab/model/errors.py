"""What goes wrong with base models."""


class ModelError(ValueError):
    """A base model that cannot be loaded; the message names it and the remedy."""
