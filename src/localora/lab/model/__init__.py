"""Base models, and the weight matrices in them that adapters are put on. Nothing is trained or measured here."""

from localora.errors import LocaloraError


class ModelError(LocaloraError, ValueError):
    """A base model that cannot be loaded; the message names it and the remedy."""
