"""`export`, `budget`: an adapter as other programs take it, and what one will cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from localora.cli.errors import errors_in_one_line


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
    with errors_in_one_line(OSError):
        from localora import ExportError, export_lora
        from localora.export.engines import check_engines
        from localora.lab.commands.export import merge, push_folder
        from localora.lab.model.base import source_of

        if merged and (gguf or modelfile or rank):
            raise ExportError("--merged writes a whole model; leave --rank, --gguf and --modelfile out, or --merged")
        if merged:
            lines = merge(adapter, out, base, overwrite)
        else:
            at = None if base is None else source_of(base)
            report = export_lora(adapter, out, rank=rank, gguf=gguf, modelfile=modelfile, base=at, overwrite=overwrite)
            lines = [str(report), *(str(engine) for engine in check_engines(out, base))]
        for line in lines:
            typer.echo(line)
        if push is not None:
            typer.echo(f"pushed to {push_folder(out, push)}")


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
    with errors_in_one_line():
        from localora.lab.cost import predict_cost
        from localora.lab.recipe.file import method_section
        from localora.lab.recipe.schema import TrainingSection

        section = method_section({"name": method, "r": r}, set_ or [])
        typer.echo(predict_cost(model, section.peft_config(0, TrainingSection().steps), tokens))
