"""What a command says while it works: phases by name, live in a terminal; in a log a line now and then.

A log (any output that is no terminal) gets a line when a phase begins, one every EVERY seconds while it lasts, and one
with what came of it. A terminal gets the last of these, and a live line instead of the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

EVERY = 30.0  # seconds


def say(console: Console, line: str) -> None:
    """A line as it is: brackets are no markup, and long ones, such as paths, are not broken."""
    console.print(line, highlight=False, soft_wrap=True, markup=False)


@dataclass
class Phase:
    """One thing that takes time; `unit` names what is counted. What came of it goes into `result`."""

    name: str
    unit: str = ""
    result: str = ""
    began: float = field(default_factory=time.monotonic)
    done: int = 0
    total: int | None = None  # None: nothing is counted (yet)
    facts: str = ""
    first: int = 0  # how many were done when counting began: a resumed run does not begin at 0
    counting: float = 0.0  # since when
    left: float | None = None  # seconds, where better is known than the pace so far

    def tell(self, done: int, total: int, facts: str = "") -> None:
        """So many are done; `facts` replace those told before."""
        if self.total is None or done < self.done:
            self.first, self.counting = done, time.monotonic()
        self.done, self.total, self.facts = done, total, facts

    def line(self, now: float) -> str:
        """`step 40/200  loss 1.23  1.2 s/step  3 min left`, as far as it is known."""
        if self.total is None:
            return f"{self.name}  {duration_text(now - self.began)}"
        parts = [f"{self.unit or self.name} {self.done}/{self.total}", self.facts]
        counted, left = self.done - self.first, self.total - self.done
        if self.left is not None:
            parts.append(f"{duration_text(self.left)} left")
        elif counted > 0 and left > 0:
            each = (now - self.counting) / counted
            parts += [f"{each:.2g} s/{self.unit}" if self.unit else "", f"{duration_text(left * each)} left"]
        else:
            parts.append(duration_text(now - self.began))
        return "  ".join(part for part in parts if part)


class Reporter:
    """Says on `console` what is going on. Phases may lie within each other; the innermost is the one told of."""

    def __init__(self, console: Console, every: float = EVERY) -> None:
        self.console = console
        self.every = every
        self._phases: list[Phase] = []
        self._said = time.monotonic()  # when the last line was printed
        self._spinner = Spinner("dots")

    def say(self, line: str) -> None:
        """A line of its own, in a terminal above what is live."""
        self._said = time.monotonic()
        say(self.console, line)

    @contextmanager
    def phase(self, name: str, unit: str = "", *, brief: bool = False) -> Iterator[Phase]:
        """While active, a phase of this name. A `brief` one is told of only if it takes long after all."""
        if not (brief or self.console.is_terminal):
            self.say(name)
        phase = Phase(name, unit)
        self._phases.append(phase)
        try:
            if len(self._phases) > 1 or self.console.quiet:
                yield phase
            else:
                with self._live() if self.console.is_terminal else self._in_the_log():
                    yield phase
        finally:
            self._phases.remove(phase)
        if not brief:
            self.say(
                f"{name}: {phase.result}{', ' if phase.result else ''}{duration_text(time.monotonic() - phase.began)}"
            )

    @contextmanager
    def _live(self) -> Iterator[None]:
        with Live(get_renderable=self._render, console=self.console, transient=True, refresh_per_second=4):
            yield

    def _render(self) -> RenderableType:
        if not self._phases:
            return ""
        phase = self._phases[-1]
        row = Table.grid(padding=(0, 1))
        line = Text(phase.line(time.monotonic()), no_wrap=True, overflow="ellipsis")
        cells: list[RenderableType] = [self._spinner, line]
        if phase.total:
            cells.insert(1, ProgressBar(phase.total, phase.done, width=10))
        row.add_row(*cells)
        return row

    @contextmanager
    def _in_the_log(self) -> Iterator[None]:
        over = threading.Event()

        def keep_telling() -> None:
            while not over.wait(max(0.0, self._said + self.every - time.monotonic())):
                phases = self._phases[-1:]
                if phases and time.monotonic() - self._said >= self.every:
                    self.say(phases[0].line(time.monotonic()))

        thread = threading.Thread(target=keep_telling, name="reporter", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def duration_text(seconds: float | None) -> str:
    """2 h 05 min, 3 min 20 s, 12 s, or a question mark."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
