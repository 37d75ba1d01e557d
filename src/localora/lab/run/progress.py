"""What a long stage says on the console while it works."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console


def describe_progress(console: Console, stage: str) -> Callable[[int, int], None]:
    """A `(done, total)` callback that prints a stage when it starts and when it is half way, not on every item."""
    said: set[str] = set()

    def tell(done: int, total: int) -> None:
        line = f"{stage}: done" if done >= total else f"{stage}: {done} of {total}" if 2 * done >= total else ""
        mark = "done" if done >= total else "half"
        if line and mark not in said:
            said.add(mark)
            console.print(line, style="dim", highlight=False)

    return tell
