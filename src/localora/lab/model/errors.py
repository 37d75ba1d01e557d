"""What goes wrong with base models."""

from localora.errors import LocaloraError


class ModelError(LocaloraError, ValueError):
    """A base model that cannot be loaded; the message names it and the remedy."""
