"""`init`, `keys`, `train`, `quickstart`: from a recipe to a trained adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localora.cli.errors import errors_in_one_line


def init() -> None:
    """Print a recipe to begin with: localora init > recipe.yaml."""
    from localora.lab.recipe.file import TEMPLATE

    try:
        typer.echo(TEMPLATE.read_text(encoding="utf-8"), nl=False)
    except OSError as error:
        typer.echo(f"error: the recipe cannot be written: {error.strerror}", err=True)
        raise typer.Exit(2) from None


def keys(
    of: Annotated[
        str | None,
        typer.Argument(
            metavar="[SECTION|METHOD]",
            help="model, data, method, training, evaluation, output, or a method's name; all when left out.",
        ),
    ] = None,
) -> None:
    """Every key of a recipe, its default and what it means."""
    with errors_in_one_line():
        from localora.lab.recipe.methods import describe_methods
        from localora.lab.recipe.schema import describe_keys

        lines = describe_keys(of)
        if of == "method":
            lines = [*describe_methods(), "", *lines]
    for line in lines:
        typer.echo(line)


TRAIN_HELP = """Fine-tune as RECIPE.yaml says, and leave adapter, plain-LoRA export, pictures and run.json in a folder.

`localora init > recipe.yaml` makes a recipe, `localora keys` explains each key, `localora keys method` the methods.
The run measures loss and task score on the test split before and after. Its folder is output.folder, or
runs/<name of the recipe>.

\b
On several GPUs, batch_size shared among them:
    accelerate launch --num_processes 4 -m localora.cli train recipe.yaml
"""


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="What to train, on what, and how.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. training.steps=50; may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Output folder, instead of the recipe's.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run the folder holds.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue it from its last checkpoint.")] = False,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run generated code, in a sandbox, to score it.")
    ] = False,
) -> None:
    with errors_in_one_line():
        from localora.lab.commands.train import train_and_report
        from localora.lab.recipe.file import load_recipe

        allowed = ["evaluation.allow_code_execution=true"] if allow_code_execution else []
        chosen = load_recipe(recipe, [*(set_ or []), *allowed], folder=out)
        train_and_report(chosen, overwrite=overwrite, resume=resume)


def quickstart(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the three runs go.")] = Path(
        "runs/quickstart-comparison"
    ),
) -> None:
    """Fine-tune SmolLM2-135M on a generated task with CPS-LoRA, G-LoRA and LoRA at equal parameters, and compare.

    Takes a few minutes on two cores. Replaces what an earlier quickstart left in the folder.
    """
    with errors_in_one_line():
        from rich.console import Console

        from localora.lab.commands.quickstart import run_quickstart

        run_quickstart(out, Console())
