"""From generated code to a sample: where to stop, what to cut off, what of it the tests may use."""

from __future__ import annotations

import ast
import re

from localora.lab.data.example import DataError, Example
from localora.lab.evaluation.sandbox import Sample

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


def sample(example: Example, text: str) -> Sample:
    """The program to run, and its tests.

    The tests have of the program what the reference solution defines and they name; the statements that the prompt
    gives in full, and the reference's imports, they have of their own.

    Raises:
        DataError: prompt and reference solution are no Python (names the example).
    """
    try:
        reference = ast.parse(example.prompt + example.completion).body
        used = {node.id for node in ast.walk(ast.parse(str(example.tests))) if isinstance(node, ast.Name)}
    except (SyntaxError, ValueError) as error:
        raise DataError(f"example {example.id!r}: its reference solution or its tests are no Python: {error}") from None
    end_of_prompt = example.prompt.rstrip().count("\n") + 1
    own: list[ast.stmt] = []
    asked: list[ast.stmt] = []
    for statement in reference:
        given = (statement.end_lineno or 0) <= end_of_prompt or isinstance(statement, ast.Import | ast.ImportFrom)
        (own if given else asked).append(statement)
    names = tuple(sorted({name for statement in asked for name in _defined(statement)} & used))
    return Sample(program(example, text), str(example.tests), names, setup=ast.unparse(ast.Module(own, [])))


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    stored = (node for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return [node.id for node in stored]
