"""Plans of a tiny model, and comparisons whose records are made up, so that every number is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localora.lab.compare.budgets import resolve
from localora.lab.compare.plan import ResolvedPlan
from localora.lab.compare.plan_file import validate_plan
from localora.lab.compare.runs import RunSpec, final_run, sweep_runs
from localora.lab.compare.store import Store, Update, write_text
from localora.lab.training.record import Curve, Evaluation, Parameters, Point, RunRecord

GRID = (1e-3, 1e-2, 1e-1)
BEST = 1e-2  # of every method in `fill`


def plan_values(model: Path | str = "smollm2-135m", **changes: Any) -> dict[str, Any]:
    """LoRA and G-LoRA on a generated task, in runs of four steps; `changes` replaces keys."""
    return {
        "model": {"name": str(model)},
        "tasks": {"sums": {"task": "arithmetic", "train_size": 24, "validation_size": 6, "test_size": 6}},
        "r": 4,
        "target_modules": ["q_proj", "down_proj"],
        "methods": {"lora": None, "g-lora": {"local_size": 0.5, "calibration_steps": 2}},
        "headroom": [],
        "learning_rates": {"grid": list(GRID), "validation_examples": 4},
        "seeds": [0, 1],
        "training": {"steps": 4, "batch_size": 2},
        "evaluation": {"examples": 4, "batch_size": 4, "max_new_tokens": 4},
    } | changes


def resolved_plan(model: Path | str, **changes: Any) -> ResolvedPlan:
    return resolve(validate_plan(plan_values(model, **changes)), "tiny")


def record_of(spec: RunSpec, validation: float, loss: float = 1.0, right: Sequence[bool] = ()) -> RunRecord:
    """A finished record as a run of `spec` would leave it."""
    score = sum(right) / len(right) if right else None
    name = "exact match" if right else None
    return RunRecord(
        status="finished",
        recipe=spec.recipe.resolved(),
        seed=spec.seed,
        data={"name": spec.task, "sizes": {}, "hashes": {}},
        parameters=Parameters(trainable=640, lora_same_r=640, base=10_000),
        before=Evaluation(loss=3.0, examples=4),
        after=Evaluation(
            loss=loss, examples=4, score_name=name, score=score, score_examples=len(right), right=list(right)
        ),
        curve=Curve(held_out=[Point(step=0, loss=3.0), Point(step=spec.steps, loss=validation)]),
        seconds={"load": 1.0, "before": 2.0, "attach": 2.5, "train": 10.0, "after": 3.0, "save": 0.5, "calibrate": 4.0},
        peak_memory_mib=512.0,
    )


def leave(store: Store, spec: RunSpec, record: RunRecord) -> Path:
    """Put a record, and what is measured of its update, where the run would; returns the record's path."""
    path = store.path(spec) / "run" / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record.write(path)
    update = Update(effective_rank=3.0, stable_rank=2.0, layers=2)
    write_text(store.path(spec) / "update.json", update.model_dump_json())
    return path


def fill(
    store: Store,
    resolved: ResolvedPlan,
    losses: dict[str, Sequence[float]],
    right: dict[str, Sequence[Sequence[bool]]] | None = None,
) -> None:
    """All runs of a plan: each method is best at BEST; its final runs have these losses and answers, one a seed."""
    store.folder.mkdir(parents=True, exist_ok=True)
    store.save_plan(resolved)
    for task in resolved.plan.tasks:
        for entry in resolved.entries:
            for rate in entry.grid:
                for spec in sweep_runs(resolved, task, entry, rate):
                    leave(store, spec, record_of(spec, validation=1.0 if rate == BEST else 1.5))
            for place, seed in enumerate(resolved.plan.seeds):
                spec = final_run(resolved, task, entry, BEST, seed)
                answers = right[entry.label][place] if right else ()
                leave(store, spec, record_of(spec, 1.0, losses[entry.label][place], answers))
