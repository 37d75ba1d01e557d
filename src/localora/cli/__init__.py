"""The command line: commands only. Heavy imports wait until a command runs."""

from __future__ import annotations

from typing import Annotated

try:
    import typer
except ImportError as error:  # the core alone is a library
    raise SystemExit("the localora command needs more packages: pip install 'localora[train]'") from error

app = typer.Typer(
    name="localora",
    help="Fine-tune language models with G-LoRA, CPS-LoRA, their hybrid or plain LoRA, at equal parameters.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

from localora.cli.adapters import budget, export  # noqa: E402 (they need typer)
from localora.cli.measuring import compare, evaluate, evaluate_help, inspect  # noqa: E402
from localora.cli.training import TRAIN_HELP, init, keys, quickstart, train  # noqa: E402

for command, help in (
    (init, None),
    (keys, None),
    (train, TRAIN_HELP),
    (evaluate, evaluate_help()),
    (compare, None),
    (export, None),
    (inspect, None),
    (budget, None),
    (quickstart, None),
):
    app.command(help=help)(command)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        from localora import __version__

        typer.echo(f"localora {__version__}")
        raise typer.Exit
