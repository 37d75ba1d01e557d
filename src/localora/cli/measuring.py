"""`evaluate`, `compare`, `inspect`: what a model can do, which method is better, what an update looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from localora.cli.errors import errors_in_one_line

EVALUATE_HELP = """Measure a base model or a trained adapter on published tasks, zero-shot.

Prints accuracy and the loss of the reference answers, with 95 % intervals. MODEL is an adapter's folder (ours or
PEFT's), smollm2-135m, a Hub id, or the folder of a model.

\b
Tasks, by name or by family:
{tasks}

\b
commonsense has two protocols, whose numbers cannot be compared:
    boolq, or boolq:likelihood   the likeliest choice per byte
    boolq:llm-adapters           the model writes which choice is right

Without --data they come from the Hub. Generated code is not run unless --allow-code-execution says so; then in a
sandbox (docs/evaluation.md).
"""


def evaluate_help() -> str:
    from localora.lab.data.published.registry import FAMILIES

    return EVALUATE_HELP.format(
        tasks="\n".join(f"    {family:<12} {' '.join(names)}" for family, names in FAMILIES.items())
    )


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An adapter's folder, or a base model.")],
    tasks: Annotated[list[str], typer.Option(help="NAME, FAMILY or NAME:PROTOCOL; several with commas.")],
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Of FAMILY/NAME_test.jsonl; the Hub when left out.")
    ] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="At most so many a task; all when left out.")] = None,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run generated code, in a sandbox, to score it.")
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Results, item by item.")] = None,
    base: Annotated[str | None, typer.Option(help="An adapter's base model, if not where its config says.")] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16"],
        typer.Option(help="Of the weights; auto is bfloat16 where the machine multiplies it fast, else float32."),
    ] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer that is generated.")] = 256,
    seed: Annotated[int, typer.Option(help="That draws --examples.")] = 0,
) -> None:
    with errors_in_one_line():
        from rich.console import Console

        from localora.lab.commands.evaluate import Settings
        from localora.lab.commands.evaluate import evaluate as run
        from localora.lab.recipe.schema import full_dtype_name

        settings = Settings(
            tasks=tuple(name for text in tasks for name in text.split(",") if name),
            data=None if data is None else str(data),
            examples=examples,
            seed=seed,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            dtype=full_dtype_name(dtype),
            allow_code_execution=allow_code_execution,
        )
        run(model, settings, Console(), base=base, out=out)


def compare(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="Methods, tasks, learning rates, seeds.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the records, instead of the plan's.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. training.steps=50; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print runs, parameters and time, and stop.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Write the report anew; PLAN may be the folder of the records.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time on this machine.")] = 1,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on the Ray cluster at HOST:PORT; auto: the one joined here."),
    ] = None,
    cpus: Annotated[float, typer.Option(help="CPUs of each run on the cluster.")] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs of each run on the cluster, or a part of one.")] = 0,
) -> None:
    """Compare methods fairly: equal parameters, tuned learning rates, paired seeds, intervals (docs/compare.md).

    Leaves a record a run and a report in the plan's folder. Stop it at any time: the same command continues.
    """
    with errors_in_one_line():
        from rich.console import Console

        from localora.lab.commands.compare import folder_of, report, run_comparison

        console, overrides = Console(), set_ or []
        if report_only:
            report(folder_of(plan, overrides, out), console)
            return
        comparison = run_comparison(
            plan,
            console,
            out=out,
            overrides=overrides,
            dry_run=dry_run,
            jobs=jobs,
            cluster=cluster,
            cpus=cpus,
            gpus=gpus,
        )
        if comparison is not None and comparison.incomplete:
            raise typer.Exit(1)


def inspect(
    source: Annotated[
        Path, typer.Argument(help="An adapter folder (ours or PEFT's LoRA), or a fine-tuned checkpoint.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the HTML page, its pictures and JSON.")],
    base: Annotated[Path | None, typer.Option(help="The checkpoint SOURCE was fine-tuned from.")] = None,
    rank: Annotated[int, typer.Option(help="Budget in LoRA's rank at which adapters are compared.")] = 16,
    clusters: Annotated[list[int] | None, typer.Option(help="Numbers of clusters to try; 2, 4 and 8.")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="Names or patterns such as '*.q_proj'; all if not.")] = None,
    draws: Annotated[int, typer.Option(help="Random matrices of each kind to compare with; more are steadier.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
) -> None:
    """Look at an update dW: spectrum, effective rank, and whether rows and columns form clusters, or do not."""
    with errors_in_one_line():
        from rich.console import Console

        from localora.lab.inspect.microscope import inspect_delta
        from localora.lab.progress import Reporter

        with Reporter(Console()).phase("looking", "layer") as phase:
            report = inspect_delta(
                source,
                base=base,
                out=out,
                rank=rank,
                clusters=clusters or (2, 4, 8),
                layers=layers,
                draws=draws,
                seed=seed,
                progress=phase.tell,
            )
        typer.echo(report)
        typer.echo(f"page: {out / 'index.html'}")
