"""Base models, and adapters on them, loaded. Nothing is trained or measured here."""

from localora.errors import LocaloraError


class ModelError(LocaloraError, ValueError):
    """A base model that cannot be loaded; the message names it and the remedy."""
