"""What `localora evaluate` does: read the tasks, load the model, measure, print, write."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from localora.files import write_file
from localora.lab.data.example import DataError
from localora.lab.evaluation.tasks import evaluate_tasks, load_tasks
from localora.lab.machine import describe_machine
from localora.lab.model.adapted import load_adapted
from localora.lab.model.base import device_of
from localora.lab.model.dtype import choose_dtype
from localora.lab.progress import Reporter, say
from localora.lab.report.console import print_results
from localora.lab.training.folder import FolderError, check_writable
from localora.lab.training.record import package_versions


@dataclass(frozen=True)
class Settings:
    """How tasks are measured; written into the results."""

    tasks: tuple[str, ...]
    data: str | None = None  # folder of local files; None reads the Hub
    examples: int | None = None  # at most so many a task
    seed: int = 0  # that draws them
    batch_size: int = 16
    max_new_tokens: int = 256
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    allow_code_execution: bool = False


def evaluate(
    model: str, settings: Settings, console: Console, *, base: str | None = None, out: Path | None = None
) -> None:
    """Measure the base model or adapter folder `model`. What is likely to be wrong is looked at before it is loaded.

    Raises:
        DataError: no tasks, unknown ones, or unusable data.
        FolderError: `out` cannot be written.
        ModelError: the model cannot be loaded.
        SandboxError: code is to be run, and this system cannot contain it.
        TrainingError: the loss is not finite.
    """
    if not settings.tasks:
        raise DataError("--tasks names no task; give NAME, FAMILY or NAME:PROTOCOL, several with commas")
    if out is not None:
        if out.is_dir():
            raise FolderError(f"{out} is a folder; --out is the results' file, such as {out / 'results.json'}")
        check_writable(out.parent)
    tasks = load_tasks(settings.tasks, settings.data, settings.examples, settings.seed)
    reporter, dtype = Reporter(console), choose_dtype(settings.dtype)
    with reporter.phase(f"loading {model}") as phase:
        loaded = load_adapted(model, base, dtype.torch)
        phase.result = f"{device_of(loaded.model)} {dtype.name} ({dtype.reason})"
    with reporter.phase("measuring") as phase:
        results = evaluate_tasks(
            loaded.model,
            loaded.tokenizer,
            tasks,
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            allow_code_execution=settings.allow_code_execution,
            progress=phase.tell,
        )
    measured = loaded.base if loaded.adapter is None else f"{loaded.adapter} on {loaded.base}"
    print_results(results, f"{measured}, {dtype.name}", console)
    if out is not None:
        values = {
            "base": loaded.base,
            "adapter": loaded.adapter,
            "adapter_config": None if loaded.config is None else type(loaded.config).__name__,
            "settings": asdict(settings),
            "dtype": asdict(dtype),
            "versions": package_versions(),
            "machine": describe_machine(),
            "tasks": [asdict(result) for result in results],
        }
        write_file(out, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        say(console, f"results      {out}")
