"""When do clusters, and events, pay? `python -m benchmarks.when_it_pays [--steps 100 400 1600] [--r 1 4 16]`

A map: facts to be learned by heart (the generated task `by-heart`), over training steps and rank. In each cell of the
map every method gets the best of a grid of learning rates, chosen on validation loss with a seed of its own, and is
then run with fresh seeds: the methods differ in nothing else, and all train LoRA's number of parameters at the cell's
r. The model is one of `python -m benchmarks.small_model --task by-heart [--medium]`, or any that a recipe can name.

Every run adds a line to results/when-it-pays/MODEL.jsonl; what is there already is not run again. `--figure` draws the
map from these lines and prints it as a table. It is for finding a regime: its few seeds decide nothing
(docs/results.md).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from transformers.utils import logging as transformers_logging

from localora.lab.recipe.file import validate_recipe
from localora.lab.run.train import train
from localora.lab.training.record import Evaluation, RunRecord
from localora.lab.training.trainer import TrainingError

RESULTS = Path(__file__).parents[1] / "results" / "when-it-pays"
EVENTS = [0.25, 0.5, 0.75]
EARLY = [0.1, 0.2, 0.3]  # while the learning rate, which falls to zero, is still high
LORA = {"name": "g-lora", "global_share": 1.0}  # LoRA as a placement of ours, so that it can have events
CPS = {"name": "cps-lora", "clusters": 2}
METHODS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "lora-events": LORA | {"repartition": EVENTS},
    "cps-lora": CPS | {"placement": "random"},
    "cps-lora-k4": CPS | {"clusters": 4, "placement": "random"},
    "cps-lora-events": CPS | {"placement": "random", "repartition": EVENTS, "repartition_place": "random"},
    "lora-events-early": LORA | {"repartition": EARLY},
    "cps-lora-events-early": CPS | {"placement": "random", "repartition": EARLY, "repartition_place": "random"},
    "lora-2r": LORA,  # twice the parameters: is there room for rank at all?
}
MODELS = {size: f"runs/{size}-by-heart/trained/model" for size in ("small", "medium")}
RATE_SEED = 1000
FACTS = 500


def recipe_of(
    model: str, dtype: str, steps: int, r: int, method: str, rate: float, seed: int, modules: str, folder: str
) -> Any:
    return validate_recipe(
        {
            "model": {"name": model, "dtype": dtype},
            "data": {
                "task": "by-heart",
                "difficulty": 1,
                "train_size": FACTS,
                "validation_size": FACTS // 2,
                "test_size": FACTS // 2,
            },
            "method": METHODS[method]
            | {
                "r": 2 * r if method == "lora-2r" else r,
                "target_modules": modules.split(",") if "," in modules else modules,
            },
            "training": {
                "steps": steps,
                "batch_size": 16,
                "learning_rate": rate,
                "seed": seed,
                "max_length": 64,
                "checkpoint_every": steps + 1,
            },
            "evaluation": {
                "examples": FACTS // 2,
                "curve_examples": FACTS // 2,
                "curve_points": 1,
                "batch_size": 125,
                "max_new_tokens": 4,
            },
            "output": {"folder": folder, "export": False, "plots": False},
        }
    )


class Map:
    """The runs of one model, each kept as a line."""

    def __init__(self, model: str, dtype: str, path: Path, modules: str, rates: list[float]) -> None:
        self.model, self.dtype, self.path, self.modules, self.rates = model, dtype, path, modules, rates
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.runs: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.before: Evaluation | None = None

    def run(self, steps: int, r: int, method: str, rate: float, seed: int) -> dict[str, Any]:
        key = {"modules": self.modules, "steps": steps, "r": r, "method": method, "rate": rate, "seed": seed}
        for run in self.runs:
            if all(run[name] == value for name, value in key.items()):
                return run
        with tempfile.TemporaryDirectory() as folder:
            recipe = recipe_of(self.model, self.dtype, steps, r, method, rate, seed, self.modules, f"{folder}/run")
            try:
                record = train(recipe, before=self.before, console=Console(quiet=True))
            except TrainingError:
                run = key | {"validation": None, "test": None, "recall": None}
            else:
                self.before = record.before
                run = key | _facts(record)
        self.runs.append(run)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")
        print(
            {
                name: run.get(name)
                for name in ("steps", "r", "method", "rate", "seed", "validation", "test", "recall", "seconds")
            },
            flush=True,
        )
        return run

    def best_rate(self, steps: int, r: int, method: str) -> float:
        """Of the grid, widened by steps of 2.5 at its edges."""

        def loss(rate: float) -> float:
            found = self.run(steps, r, method, rate, RATE_SEED)["validation"]
            return float("inf") if found is None else float(found)

        rates = sorted(self.rates)
        while True:
            best = min(rates, key=loss)
            if best == rates[0] and rates[0] > self.rates[0] / 7:
                rates.insert(0, float(f"{rates[0] / 2.5:.2g}"))
            elif best == rates[-1] and rates[-1] < self.rates[-1] * 7:
                rates.append(float(f"{rates[-1] * 2.5:.2g}"))
            else:
                return best


def _facts(record: RunRecord) -> dict[str, Any]:
    assert record.after is not None
    return {
        "validation": record.curve.held_out[-1].loss,
        "test": record.after.loss,
        "recall": record.after.score,
        "right": [int(right) for right in record.after.right],
        "loss_sums": record.after.items.loss_sums if record.after.items else [],
        "tokens": record.after.items.tokens if record.after.items else [],
        "trainable": record.parameters.trainable,
        "stored": record.parameters.stored,
        "rank": record.parameters.rank,
        "seconds": round(record.seconds["train"], 1),
        "dtype": record.dtype,
        "machine": record.machine,
    }


def cells(steps: list[int], ranks: list[int]) -> Iterator[tuple[int, int]]:
    for count in steps:
        for r in ranks:
            yield count, r


def differences(runs: list[dict[str, Any]]) -> dict[tuple[int, int, str], list[tuple[float, float]]]:
    """By r, steps and method: test loss and recall of each seed, less LoRA's of the same seed."""
    final = {
        (run["r"], run["steps"], run["method"], run["seed"]): (run["test"], run["recall"])
        for run in runs
        if run["seed"] != RATE_SEED and run["test"] is not None
    }
    found: dict[tuple[int, int, str], list[tuple[float, float]]] = {}
    for (r, steps, method, seed), (loss, recall) in sorted(final.items()):
        lora = final.get((r, steps, "lora", seed))
        if lora is not None:
            found.setdefault((r, steps, method), []).append((loss - lora[0], recall - lora[1]))
    return found


def draw(runs: list[dict[str, Any]], to: Path) -> None:
    """One panel a rank: difference to LoRA over steps, a dot a seed; and the same as a table on the console."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = differences(runs)
    ranks = sorted({r for r, _, _ in found})
    steps_run = sorted({steps for _, steps, _ in found})
    methods = [name for name in METHODS if name != "lora" and any(name == method for _, _, method in found)]
    shown, axes = pyplot.subplots(
        1, len(ranks), figsize=(3.2 * len(ranks), 3), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    print("| r | steps | LoRA's test loss, recall | " + " | ".join(methods) + " |")
    for r, panel in zip(ranks, axes[0], strict=True):
        for number, method in enumerate(methods):
            cells = {steps: values for (rank, steps, name), values in found.items() if (rank, name) == (r, method)}
            if not cells:
                continue
            means = [sum(loss for loss, _ in values) / len(values) for values in cells.values()]
            panel.plot(list(cells), means, color=f"C{number}", label=method)
            dots = [(steps, loss) for steps, values in cells.items() for loss, _ in values]
            panel.scatter(*zip(*dots, strict=True), color=f"C{number}", s=10)
        panel.axhline(0, color="grey", linewidth=0.8)
        panel.set(title=f"r {r}", xlabel="steps", xscale="log")
        panel.set_xticks(steps_run, [str(steps) for steps in steps_run])
        panel.minorticks_off()
        for steps in sorted({count for rank, count, _ in found if rank == r}):
            base = [run for run in runs if (run["r"], run["steps"], run["method"]) == (r, steps, "lora")]
            final = [run for run in base if run["seed"] != RATE_SEED]
            print(
                f"| {r} | {steps} | {_mean(final, 'test'):.3f}, {_mean(final, 'recall'):.1%} | "
                + " | ".join(_cell(found.get((r, steps, method))) for method in methods)
                + " |"
            )
    axes[0, 0].set_ylabel("test loss, less LoRA's")
    axes[0, 0].legend(frameon=False, fontsize=8)
    to.parent.mkdir(parents=True, exist_ok=True)
    shown.savefig(to, dpi=120)


def _mean(runs: list[dict[str, Any]], key: str) -> float:
    return float(sum(run[key] for run in runs) / len(runs))


def _cell(values: list[tuple[float, float]] | None) -> str:
    if values is None:
        return "-"
    loss, recall = (sum(each) / len(values) for each in zip(*values, strict=True))
    return f"{loss:+.3f}, {100 * recall:+.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help="small, medium, or a recipe's model.name")
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 400, 1600])
    parser.add_argument("--r", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--modules", default="all-linear")
    parser.add_argument("--dtype", default="float32", help="of the model; each line says what it was")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[2.5e-3, 6.3e-3, 1.6e-2])
    parser.add_argument("--figure", type=Path, help="draw what is there, and run nothing")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    runs = Map(
        MODELS.get(arguments.model, arguments.model),
        arguments.dtype,
        RESULTS / f"{Path(arguments.model).name}.jsonl",
        arguments.modules,
        sorted(arguments.rates),
    )
    if arguments.figure:
        draw(runs.runs, arguments.figure)
        return
    for steps, r in cells(arguments.steps, arguments.r):
        for method in arguments.methods:
            rate = runs.best_rate(steps, r, method)
            for seed in arguments.seeds:
                runs.run(steps, r, method, rate, seed)


if __name__ == "__main__":
    main()
