"""`make architecture`: docs/architecture.md again, each file's role from the first sentence of its docstring."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "localora"
PAGE = ROOT / "docs" / "architecture.md"
INTRODUCTION = """# Architecture

Two halves. The **core** is what a training script imports: it needs torch, peft, transformers, safetensors and numpy,
and knows nothing of the lab. The **lab** runs experiments with it: there, imports run one way, from recipes over data,
models, training, evaluation, runs and comparisons to reports and commands, and none climbs. `make check` holds both
(contracts in `pyproject.toml`).

## Where to look

| for | file |
| --- | --- |
| dW = s B A, packed factors to dense ones | `adapter/factors.py`; of a whole layer, `adapter/delta.py` |
| what a forward pass does | `adapter/layer.py`, and its arithmetic in `adapter/update.py` |
| G-LoRA's Taylor scores and its block | `placement/taylor.py` |
| CPS-LoRA's gradient sketch, and its co-clusters | `placement/sketch.py`, `placement/coclustering.py` |
| how much the clusters capture, and how far their subspaces overlap | `placement/captured.py` |
| partition and adapters in turn (an event), step by step | `lifecycle/repartition.py`; when, `lifecycle/schedule.py` |
| which layers of a model hold an adapter, where it acts, how large it is | `adapter/status.py` |
| a saved adapter, read and refused | `adapter/adapter_file.py`; into a model, `adapter/state_check.py` |
| an option, its default and range | `adapter/config.py` |

## How to add a placement

One that looks at no data is a function of shape and seed in `placement/random.py`, a name in `PlacementMode`
(`adapter/config.py`), and a line in `LocalizedModel._place_at_once` (`adapter/model.py`). One that is planned:

1. `placement/`: a file that turns a signal, tensors only, into a `Partition`; and what observes the signal from
   (x, g) pairs of backward passes, if `TaylorScores` and `GradientSketch` are not it.
2. `lifecycle/planning.py`: an entry in `PLANNERS` says how it is placed, first and at an event, and in how many passes.
3. `adapter/config.py`: a config class with its options, the name of its planner, and `layer_budget`, whose shapes
   (`placement/budget.py`) must not depend on labels; and its name in `METHODS`.
4. `lab/recipe/methods.py`: a section built from the config; `lab/cost/calibration.py`: what its signal takes.
5. `tests/method_table.py`: a row, which sends it through every test of the life-cycle; and a test of the planner that
   plants an answer and demands it back.

Layer, merge, export, saving and loading know partitions only, and need nothing.

## Every file

Every file of `src/localora`, with the first sentence of its docstring; made by `make architecture`.
"""
FOLDERS = (
    "", "cli", "placement", "adapter", "lifecycle", "export", "lab", "lab/pages", "lab/recipe", "lab/data", "lab/model",
    "lab/inspect", "lab/cost", "lab/training", "lab/evaluation", "lab/run", "lab/compare", "lab/report", "lab/commands",
)  # fmt: skip


def render(source: Path = SOURCE) -> str:
    """The page: a section a folder, a line a file.

    Raises:
        ValueError: a folder that FOLDERS does not know, or a module without a docstring.
    """
    parts = [INTRODUCTION]
    for folder in _sections(source):
        parts.append(f"## {'localora' if not folder else f'{folder}/'}\n\n{_role(source / folder / '__init__.py')}\n")
        parts.append("".join(_lines(source, folder)))
    return "\n".join(parts)


def _sections(source: Path) -> Iterator[str]:
    """FOLDERS, each followed by the folders inside it that have no place of their own in the list."""
    found = sorted(path.parent.relative_to(source).as_posix() for path in source.rglob("__init__.py"))
    found = ["" if name == "." else name for name in found]
    unknown = [name for name in found if _top(name) not in FOLDERS]
    if unknown:
        raise ValueError(f"tools/architecture.py does not say where {', '.join(unknown)} belongs")
    for top in FOLDERS:
        yield from (name for name in found if _top(name) == top)


def _top(name: str) -> str:
    parts = name.split("/")
    return "/".join(parts[:2] if parts[0] == "lab" else parts[:1])


def _lines(source: Path, folder: str) -> Iterator[str]:
    """The folder's own files, and those of folders in it that are no packages."""
    own = [path for path in (source / folder).glob("*.py") if path.name != "__init__.py"]
    inner = [path for path in (source / folder).glob("*/*.py") if not (path.parent / "__init__.py").exists()]
    for path in sorted(own) + sorted(inner):
        line = f"- `{path.relative_to(source / folder).as_posix()}`: {_role(path)}"
        yield textwrap.fill(line, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) + "\n"


def _role(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"{path} has no docstring that says what belongs in it")
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", first)[0] if path.name != "__init__.py" else first


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
