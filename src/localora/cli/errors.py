"""Errors of a command: one line, and no traceback, where the user can put it right."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer


@contextmanager
def errors_in_one_line(*more: type[Exception]) -> Iterator[None]:
    """What a user can put right ends in a line that says how, and exit code 2; anything else is our bug, and shows.

    Ctrl-C and SIGTERM end what is under way in order: nothing half-written stays, and what was started ends too.
    """
    import warnings

    from transformers.utils import logging

    from localora.errors import LocaloraError

    expected: tuple[type[Exception], ...] = (LocaloraError, *more)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # they speak to the authors of libraries
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    before = signal.getsignal(signal.SIGTERM)
    if os.environ.get("WORLD_SIZE", "1") == "1":  # one of several waits for the others where no handler runs
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except expected as error:
        typer.echo("error: " + str(error).replace("\n", "\n       "), err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt as stopped:
        number = stopped.args[0] if stopped.args and isinstance(stopped.args[0], int) else signal.SIGINT
        typer.echo(f"stopped by {signal.Signals(number).name}", err=True)
        raise typer.Exit(128 + number) from None
    finally:
        if before is not None:  # a handler that C code set cannot be set again from here
            signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    raise KeyboardInterrupt(number)
