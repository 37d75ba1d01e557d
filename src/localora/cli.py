"""The command line: commands only. Heavy imports wait until a command runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

try:
    import typer
except ImportError as error:  # the core alone is a library
    raise SystemExit("the localora command needs more packages: pip install 'localora[train,plots]'") from error

app = typer.Typer(
    name="localora",
    help="Fine-tune language models with G-LoRA, CPS-LoRA, their hybrid or plain LoRA, at equal parameters.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


METHODS_HELP = """Methods, and the keys that only they have:
    lora       PEFT's own LoRA, the baseline
    g-lora     global_share, local_size      whole matrix + block of important rows and columns
    cps-lora   clusters, balance             co-clusters of rows and columns
    hybrid     clusters, balance, global_share   whole matrix + co-clusters
PEFT's, each with parameters of LoRA at rank r unless its own keys say otherwise:
    rslora     LoRA scaled by alpha / sqrt(r)
    dora       direction and magnitude apart
    pissa      starts as the leading singular directions of W
    lora-ga    calibration_steps, scale      starts along the gradient of W on training batches
    adalora    init_r, target_r, final_share     starts with r everywhere, takes away what matters least
    gralora    blocks                        a grid of blocks with factors of their own
    bd-lora    blocks                        one factor block-diagonal, for several GPUs
    miss       own_rank                      one trained matrix a layer
    hira       the product multiplies W entry by entry
No adapter:
    full       every weight of the model; its own learning rate, a tenth of LoRA's or less
"""


@app.command()
def init() -> None:
    """Print a recipe to begin with: localora init > recipe.yaml."""
    from localora.lab.recipe.file import TEMPLATE

    typer.echo(TEMPLATE.read_text(encoding="utf-8"), nl=False)


@app.command()
def keys(
    section: Annotated[
        Literal["model", "data", "method", "training", "evaluation", "output"] | None,
        typer.Argument(help="Of the recipe; all when left out."),
    ] = None,
) -> None:
    """Every key of a recipe, its default and what it means."""
    from localora.lab.recipe.schema import describe_keys

    if section == "method":
        typer.echo(METHODS_HELP)
    for line in describe_keys():
        if section is None or line.startswith(f"{section}."):
            typer.echo(line)


TRAIN_HELP = """Fine-tune as RECIPE.yaml says, and leave adapter, plain-LoRA export, pictures and run.json in a folder.

`localora init > recipe.yaml` makes a recipe, `localora keys` explains each key, `localora keys method` the methods.
The run measures loss and task score on the test split before and after. Its folder is output.folder, or
runs/<name of the recipe>.

\b
On several GPUs, batch_size shared among them:
    accelerate launch --num_processes 4 -m localora.cli train recipe.yaml
"""


@app.command(help=TRAIN_HELP)
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
    with _errors_in_one_line():
        from localora.lab.commands.train import train_and_report
        from localora.lab.recipe.file import load_recipe

        allowed = ["evaluation.allow_code_execution=true"] if allow_code_execution else []
        chosen = load_recipe(recipe, [*(set_ or []), *allowed], folder=out)
        train_and_report(chosen, overwrite=overwrite, resume=resume)


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
sandbox (docs/evaluation.md). With --harness lm-eval, tasks are named as lm-evaluation-harness names them, and ours
there are localora_boolq and so on.
"""


def _evaluate_help() -> str:
    from localora.lab.data.published.registry import FAMILIES

    return EVALUATE_HELP.format(
        tasks="\n".join(f"    {family:<12} {' '.join(names)}" for family, names in FAMILIES.items())
    )


@app.command(help=_evaluate_help())
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
    harness: Annotated[Literal["localora", "lm-eval"], typer.Option(help="What measures.")] = "localora",
) -> None:
    with _errors_in_one_line():
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
            harness=harness,
        )
        run(model, settings, Console(), base=base, out=out)


@app.command()
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
    with _errors_in_one_line():
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


@app.command()
def export(
    adapter: Annotated[Path, typer.Argument(help="Folder of a trained adapter.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    rank: Annotated[
        int | None, typer.Option(help="Truncate to this rank by SVD; the error it causes is printed.")
    ] = None,
    gguf: Annotated[bool, typer.Option("--gguf", help="Also adapter.gguf, for llama.cpp and Ollama.")] = False,
    modelfile: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Also a Modelfile, for the base model that Ollama knows as MODEL."),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="The base model with the adapter added, instead of LoRA.")
    ] = False,
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Upload OUT to this Hub repository; made if not there.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model, if not where the adapter's config says.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in OUT.")] = False,
) -> None:
    """Write a trained adapter as plain LoRA, for PEFT, vLLM, llama.cpp, Ollama and SGLang; exact without --rank.

    Prints the command that serves it with each engine, or what that engine would not take (docs/serving.md).
    """
    with _errors_in_one_line(OSError):
        from rich.console import Console

        from localora.lab.commands.export import export as run

        run(
            adapter,
            out,
            Console(),
            rank=rank,
            gguf=gguf,
            modelfile=modelfile,
            merged=merged,
            push=push,
            base=base,
            overwrite=overwrite,
        )


@app.command()
def inspect(
    source: Annotated[
        Path, typer.Argument(help="An adapter folder (ours or PEFT's LoRA), or a fine-tuned checkpoint.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the HTML page, pictures, JSON and CSV.")],
    base: Annotated[Path | None, typer.Option(help="The checkpoint SOURCE was fine-tuned from.")] = None,
    rank: Annotated[int, typer.Option(help="Budget in LoRA's rank at which adapters are compared.")] = 16,
    clusters: Annotated[list[int] | None, typer.Option(help="Numbers of clusters to try; 2, 4 and 8.")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="Names or patterns such as '*.q_proj'; all if not.")] = None,
    draws: Annotated[int, typer.Option(help="Shuffled matrices to compare with; more are steadier.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
) -> None:
    """Look at an update dW: spectrum, effective rank, and whether rows and columns form clusters, or do not."""
    with _errors_in_one_line(ImportError):
        from rich.console import Console

        from localora.lab.inspect.microscope import inspect_delta
        from localora.lab.progress import Narrator

        with Narrator(Console()).phase("looking", "layer") as phase:
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


@app.command()
def budget(
    model: Annotated[str, typer.Option(help="smollm2-135m, llama-3-1b, -8b, -70b, a Hub id, or a folder.")],
    method: Annotated[
        Literal["lora", "g-lora", "cps-lora", "hybrid"], typer.Option(help="Whose cost is known.")
    ] = "cps-lora",
    r: Annotated[int, typer.Option(help="LoRA-equivalent rank.")] = 16,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another key of the method, e.g. clusters=8.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens in a calibration batch.")] = 2048,
) -> None:
    """What an adapter takes: parameters, file sizes, optimizer and calibration memory. Needs no weights."""
    with _errors_in_one_line():
        from localora.lab.cost import predict_cost
        from localora.lab.recipe.file import method_section
        from localora.lab.training.adapter import adapter_config

        section = method_section({"name": method, "r": r}, set_ or [])
        typer.echo(predict_cost(model, adapter_config(section, seed=0), tokens))


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the three runs go.")] = Path(
        "runs/quickstart-comparison"
    ),
) -> None:
    """Fine-tune SmolLM2-135M on a generated task with CPS-LoRA, G-LoRA and LoRA at equal parameters, and compare.

    Takes a few minutes on two cores. Replaces what an earlier quickstart left in the folder.
    """
    with _errors_in_one_line():
        from rich.console import Console

        from localora.lab.commands.quickstart import run_quickstart

        run_quickstart(out, Console())


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        from localora import __version__

        typer.echo(f"localora {__version__}")
        raise typer.Exit


@contextmanager
def _errors_in_one_line(*more: type[Exception]) -> Iterator[None]:
    """What a user can put right ends in a line that says how, and exit code 2; anything else is our bug, and shows."""
    import warnings

    from transformers.utils import logging

    from localora.errors import LocaloraError

    expected: tuple[type[Exception], ...] = (LocaloraError, *more)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # they speak to the authors of libraries
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    except expected as error:
        typer.echo("error: " + str(error).replace("\n", "\n       "), err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
