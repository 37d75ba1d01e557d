"""What is said while something takes long: in a log, in a terminal, and in numbers."""

from __future__ import annotations

import io
import re
import threading

import pytest
from rich.console import Console

from localora.lab.progress import Phase, Reporter, duration_text
from patience import PATIENCE


class Log(io.StringIO):
    """A log that can be waited for: `expect` returns once a line of it holds the text."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Condition()

    def write(self, text: str) -> int:
        with self.written:
            self.written.notify_all()
            return super().write(text)

    def expect(self, text: str, times: int = 1) -> None:
        with self.written:
            assert self.written.wait_for(lambda: self.getvalue().count(text) >= times, timeout=PATIENCE), (
                self.getvalue()
            )


def test_a_line_holds_what_is_known() -> None:
    phase = Phase("training", "step", began=100.0)
    assert phase.line(165.0) == "training  1 min 05 s"
    phase.total, phase.done, phase.first, phase.counting = 200, 0, 0, 110.0
    assert phase.line(165.0) == "step 0/200  1 min 05 s"
    phase.done, phase.facts = 40, "loss 1.230"
    assert phase.line(158.0) == "step 40/200  loss 1.230  1.2 s/step  3 min 12 s left"
    phase.first = 30  # a resumed run: ten steps in 48 s
    assert phase.line(158.0) == "step 40/200  loss 1.230  4.8 s/step  12 min 48 s left"
    items = Phase("measuring", done=10, total=40, counting=100.0, facts="answers")
    assert items.line(120.0) == "measuring 10/40  answers  1 min 00 s left"


def test_counting_begins_anew_where_something_else_is_counted() -> None:
    phase = Phase("measuring")
    phase.tell(0, 10, "losses")
    phase.tell(10, 10, "losses")
    began = phase.counting
    phase.tell(0, 4, "answers")
    assert (phase.first, phase.done, phase.total, phase.facts) == (0, 0, 4, "answers")
    assert phase.counting > began


def test_a_log_gets_a_line_a_phase_and_one_every_while() -> None:
    log = Log()
    reporter = Reporter(Console(file=log, width=80), every=0.01)
    with reporter.phase("training", "step") as phase:
        phase.tell(3, 8, "loss 1.230")
        log.expect("\nstep 3/8  loss 1.230  0 s", times=2)
        with reporter.phase("measuring held-out loss", brief=True):
            log.expect("\nmeasuring held-out loss  0 s")
        phase.result = "8 steps"
    lines = log.getvalue().splitlines()
    assert lines[0] == "training"
    assert re.fullmatch(r"training: 8 steps, \d+ s", lines[-1])
    assert not any(thread.name.startswith("reporter") for thread in threading.enumerate())


def test_a_short_phase_is_two_lines_and_a_failed_one_has_no_result() -> None:
    log = Log()
    reporter = Reporter(Console(file=log, width=80), every=1e6)
    with reporter.phase("loading"), reporter.phase("within", brief=True):
        pass
    with pytest.raises(KeyError), reporter.phase("failing"):
        raise KeyError
    assert log.getvalue().splitlines() == ["loading", "loading: 0 s", "failing"]


def test_a_terminal_has_one_live_line_that_goes_away() -> None:
    terminal = Log()
    reporter = Reporter(Console(file=terminal, width=100, force_terminal=True, legacy_windows=False))
    with reporter.phase("training", "step") as phase:
        phase.tell(3, 8, "loss 1.230")
        terminal.expect("step 3/8  loss 1.230")
        phase.result = "8 steps"
    last = terminal.getvalue().rsplit("\x1b[2K", 1)[-1]  # after the live line was erased
    assert re.fullmatch(r"\s*training: 8 steps, \d+ s\s*", last)


def test_nothing_is_said_on_a_quiet_console() -> None:
    log = Log()
    with Reporter(Console(file=log, quiet=True), every=0.0).phase("training"):
        pass
    assert log.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "?"), (11.6, "12 s"), (200.2, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_times_in_words(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text
