"""What a comparison refuses."""

from __future__ import annotations

from collections.abc import Sequence

from localora.errors import LocaloraError


class PlanError(LocaloraError, ValueError):
    """A plan that cannot be run, or would not be fair; `problems` holds one line per problem."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))
