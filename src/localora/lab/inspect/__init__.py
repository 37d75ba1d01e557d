"""The microscope: what a trained update dW looks like, and whether it has clusters. Needs no run, no record."""

from localora.errors import LocaloraError


class InspectionError(LocaloraError, ValueError):
    """A source that cannot be inspected, or settings that do not fit it; the message names the remedy."""
