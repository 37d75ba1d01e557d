"""The one error a user of the microscope can put right."""

from __future__ import annotations

from localora.errors import LocaloraError


class InspectionError(LocaloraError, ValueError):
    """A source that cannot be inspected, or settings that do not fit it; the message names the remedy."""
