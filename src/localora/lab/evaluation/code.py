"""From generated code to a program: where to stop, what to cut off."""

from __future__ import annotations

import ast
import re

from localora.lab.data.example import Example

# After a function's body: a line that is not indented, and closes no bracket. After a whole program: its own tests.
_AFTER_BODY = re.compile(r"\n(?=[^\s)\]}])")
_AFTER_PROGRAM = re.compile(r"\n(?=assert\b|print\(|if __name__|\"\"\"|```|# Test)")


def completes_function(example: Example) -> bool:
    """Whether the prompt ends inside a function (HumanEval), not before a program (MBPP)."""
    try:
        statements = ast.parse(example.prompt).body
    except SyntaxError:  # a header without a docstring
        return True
    return bool(statements) and isinstance(statements[-1], ast.FunctionDef | ast.AsyncFunctionDef)


def stop_pattern(example: Example) -> str:
    """What :func:`generate` waits for: nothing after it belongs to the answer."""
    return (_AFTER_BODY if completes_function(example) else _AFTER_PROGRAM).pattern


def program(example: Example, text: str) -> str:
    """Prompt and generated text without what the model went on to write after its answer."""
    after = _AFTER_BODY if completes_function(example) else _AFTER_PROGRAM
    # An answer may start on a line of its own.
    lead = len(text) - len(text.lstrip("\n"))
    cut = after.search(text, lead)
    return example.prompt + (text[: cut.start()] if cut else text)
