"""Run a program, then its tests, in this interpreter; the token goes out only after the last test.

The program may do anything to the interpreter, so nothing it can easily reach is used after it: the functions that
report are taken beforehand, the token is still unread in its pipe, and exiting early leaves no verdict.
"""

from __future__ import annotations

import builtins
import os
import sys
import types
from typing import NoReturn


def judge(program: str, tests: str, token: int, verdict: int) -> NoReturn:
    """`token` and `verdict` are file descriptors: what is read from the one is written to the other."""
    read, write, leave = os.read, os.write, os._exit
    pristine = dict(vars(builtins))
    module = types.ModuleType("program")
    sys.modules["program"] = sys.modules["__main__"] = module  # dataclasses look their module up
    space = vars(module)
    compiled = [(text, name) for text, name in ((program, "program"), (tests, "tests"))]
    try:
        for text, name in compiled:
            exec(compile(text, f"<{name}>", "exec", dont_inherit=True), space)
            vars(builtins).update(pristine)
    except BaseException as error:  # SystemExit too: leaving is no pass
        write(verdict, f"error: {type(error).__name__}"[:200].encode())
        leave(1)
    write(verdict, read(token, 64))
    leave(0)
