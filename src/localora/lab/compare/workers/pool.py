"""What a place to run must offer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from localora.lab.compare.runs import RunSpec

RUN_ONE = "localora.lab.compare.run_one"
QUIET = {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore::FutureWarning", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
LOG_LINES = 4  # of a failed run's log that its error quotes


@dataclass(frozen=True)
class Done:
    spec: RunSpec
    code: int  # the exit code of the run's process; negative: killed by that signal
    error: str  # what it said last


class Pool(Protocol):
    @property
    def slots(self) -> int:
        """Runs that may be submitted at a time."""

    def submit(self, spec: RunSpec, job: str) -> None:
        """Start a run; `job` is the text of its job file."""

    def wait(self, seconds: float) -> list[Done]:
        """Runs that ended; after at most so many seconds, possibly none."""

    def close(self) -> None:
        """End what still runs."""


def last_words(log: Path, code: int) -> str:
    """The end of a log as an error."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line for line in text.splitlines() if line.strip()][-LOG_LINES:]
    cause = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return "\n".join([*lines, f"({cause})"])
