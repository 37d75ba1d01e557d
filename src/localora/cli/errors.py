"""Errors of a command: one line, and no traceback, where the user can put it right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def errors_in_one_line(*more: type[Exception]) -> Iterator[None]:
    """What a user can put right ends in a line that says how, and exit code 2; anything else is our bug, and shows."""
    import warnings

    from transformers.utils import logging

    from localora.errors import LocaloraError

    expected: tuple[type[Exception], ...] = (LocaloraError, *more)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # they speak to the authors of libraries
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    except expected as error:
        typer.echo("error: " + str(error).replace("\n", "\n       "), err=True)
        raise typer.Exit(2) from None
