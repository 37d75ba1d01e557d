"""Hooks of the documentation site: reference pages made from the code, the reports of comparisons, and figures that
benchmarks keep beside their records. What can be read off the code or the records is never typed into a page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from typer.main import get_command

ROOT = Path(__file__).parent.parent
_OUTSIDE = re.compile(r"\((?:\.\./)+(benchmarks|results)/([^)\s]+\.png)\)")
_REPORT = re.compile(r"\(\.\./results/([\w-]+)/report\.md\)")
_DEFAULT = re.compile(r"<code>option\((\S+?),.*?\)</code>", re.DOTALL)  # of a config's field
_EMPTY = {"list": "[]", "dict": "{}"}
_ROLE = re.compile(r":(?:class|func|mod|meth|attr):(?=<code>)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference pages, and the pictures that pages show from outside docs/."""
    for name, text in {"recipe": _recipe_keys(), "plan": _plan_keys(), "cli": _command_line()}.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    for report in sorted(ROOT.glob("results/*/report.md")):
        name = report.parent.name
        files.append(File.generated(config, f"results/{name}/index.md", content=report.read_text(encoding="utf-8")))
        for picture in report.parent.glob("*.png"):
            files.append(File.generated(config, f"results/{name}/{picture.name}", content=picture.read_bytes()))
    pages = [file for file in files if file.src_uri.endswith(".md")]
    wanted = {"/".join(match) for page in pages for match in _OUTSIDE.findall(page.content_string)}
    for path in sorted(wanted):
        files.append(File.generated(config, f"figures/{path}", content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point reports and pictures that live outside docs/ to their copies."""
    up = "../" * page.file.src_uri.count("/")
    return _REPORT.sub(r"(results/\1/index.md)", _OUTSIDE.sub(rf"({up}figures/\1/\2)", markdown))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings as a reader wants them: a field's default by itself, and names without the role they have."""
    html = _DEFAULT.sub(lambda found: f"<code>{_EMPTY.get(found[1], found[1])}</code>", html)
    return _ROLE.sub("", html)


def _recipe_keys() -> str:
    from localora.lab.recipe.schema import SECTIONS

    parts = [
        "# Recipe keys\n\nEvery key of a recipe and its default; made from the models that check recipes."
        " Override one from the command line with `--set section.key=value`."
    ]
    for section, models in SECTIONS.items():
        for model in models:
            title = section if len(models) == 1 else f"{section}: {', '.join(_names(model))}"
            about = (model.__doc__ or "").strip().split("\n\n")[0] if len(models) > 1 else ""
            parts.append(f"## {title}\n\n{_plain(about)}\n\n{_table(model)}")
    return "\n\n".join(parts) + "\n"


def _plan_keys() -> str:
    from localora.lab.compare.plan import LearningRates, Plan, Published, Statistics

    text = "# Plan keys\n\nEvery key of a plan; [how to compare](../compare.md) says how they work together."
    groups = {"": Plan, "learning_rates": LearningRates, "statistics": Statistics, "published": Published}
    for name, model in groups.items():
        text += f"\n\n## {name or 'top level'}\n\n{_table(model)}"
    return text + "\n"


def _names(model: type[BaseModel]) -> list[str]:
    annotation: Any = model.model_fields["name"].annotation
    return [str(name) for name in getattr(annotation, "__args__", (annotation,))]


def _table(model: type[BaseModel]) -> str:
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for key, field in model.model_fields.items():
        if field.is_required():
            default = "required"
        elif field.default_factory is not None or isinstance(field.default, BaseModel):
            default = "its own defaults"
        else:
            default = "not set" if field.default is None else f"`{field.default}`"
        rows.append(f"| `{key}` | {default} | {_plain(field.description or '').replace('|', 'or')} |")
    return "\n".join(rows)


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;")


def _command_line() -> str:
    from localora.cli import app

    root = get_command(app)
    context = typer.Context(root, info_name="localora")
    parts = ["# Command line\n\nWhat `localora COMMAND --help` prints."]
    for name in root.list_commands(context):  # type: ignore[attr-defined]
        command = root.get_command(context, name)  # type: ignore[attr-defined]
        usage = command.get_usage(typer.Context(command, info_name=name, parent=context))
        rows = ["| argument or option | meaning |", "| --- | --- |"]
        for parameter in command.params:
            if getattr(parameter, "hidden", False):
                continue
            label = ", ".join([*parameter.opts, *parameter.secondary_opts])
            meaning = _plain(getattr(parameter, "help", "") or "").replace("|", "or")
            rows.append(f"| `{label if label.startswith('-') else label.upper()}` | {meaning} |")
        about = (command.help or "").replace("\b", "").strip()
        parts.append(f"## {name}\n\n    {usage}\n\n```text\n{about}\n```\n\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"
