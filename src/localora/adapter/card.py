"""The model card of an adapter: what it is, how to load it, how to get plain LoRA; written whenever it is saved.

PEFT writes a README.md of its own, mostly empty, before it saves an adapter's config. Ours fills that in: a marked
section of its own, which is written anew at every save, and the metadata that the Hub reads. What a user has written
into the card stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

# Those of huggingface_hub that PEFT writes its cards with.
from peft.peft_model import ModelCard, ModelCardData  # type: ignore[attr-defined, unused-ignore]

if TYPE_CHECKING:
    from localora.adapter.config import LocalizedConfig

CARD = "README.md"
BEGIN, END = "<!-- localora -->", "<!-- end of localora -->"
EXPORTED = "<!-- exported by localora -->"  # what an export may replace, and nothing else
TRAINING = "| training | "
TO_FILL_IN = "[More Information Needed]"  # in PEFT's template, which nobody has touched while all are there
LOADERS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
HERE = "this folder, or its Hub id"
PAPERS = """## Papers

- Jiahao Xiong, Yihong Huang, Yihe Liu, Xianming Hu, Hongbo Zhao, Kai Zhang. *G-LoRA: Global-Local Decoupled Low-Rank
  Adaptation*. Findings of the Association for Computational Linguistics: ACL 2026, pp. 20125-20141.
- Jiahao Xiong, Yihe Liu, Xianming Hu, Hongbo Zhao, Nuoyi Chen, Jie Zhang, Kai Zhang. *Localized Low-Rank Adaptation
  within Clustered Parameter Subspaces*. ACL 2026, Volume 1: Long Papers, pp. 26556-26572.

localora is an independent implementation from their abstracts.
"""


def hub_id(name: str | None) -> str | None:
    """The Hub id of a base model given as id or as its folder in the Hub's cache; None for any other path.

    A path of somebody's machine tells a reader nothing, and the Hub refuses it as metadata.
    """
    if not name:
        return None
    cached = re.search(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots", name)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return name if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) and not Path(name).exists() else None


def complete_card(folder: Path, config: LocalizedConfig) -> None:
    """Bring the card of the adapter just saved in `folder` up to date with its config."""
    path = folder / CARD
    fresh = ModelCard.from_template(ModelCardData())
    card = ModelCard.load(path) if path.exists() else fresh
    untouched = card.text.count(TO_FILL_IN) == fresh.text.count(TO_FILL_IN)
    _write(path, card, _adapter_section(config, training_rows(folder)), config, untouched=untouched)


def note_training(folder: Path, facts: Iterable[str]) -> None:
    """Add what only a training run knows, such as data and losses; a later save of the adapter keeps it."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith(TRAINING)]
    last_row = max(i for i, line in enumerate(lines[: lines.index(END)]) if line.startswith("| "))
    rows = [f"{TRAINING}{fact} |" for fact in facts]
    path.write_text("\n".join([*lines[: last_row + 1], *rows, *lines[last_row + 1 :]]) + "\n", encoding="utf-8")


def training_rows(folder: Path) -> list[str]:
    """What :func:`note_training` left in a folder's card, for the card of its export."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""  # it may be a stranger's
    return [line for line in text.splitlines() if line.startswith(TRAINING)]


def write_export_card(folder: Path, config: LocalizedConfig, rank: str, training: Iterable[str]) -> None:
    """The card of an adapter's plain LoRA. `rank` says it in words: exact, truncated, padded."""
    section = _section(
        f"{EXPORTED}\n\n# Plain LoRA, exported from {config.title}",
        "A low-rank adapter, trained with localora and exported to plain LoRA: it loads wherever LoRA does, without "
        "localora.",
        [*_rows(config), f"| this file | {rank} |", *training],
        _load_on_base(config),
    )
    _write(folder / CARD, ModelCard.from_template(ModelCardData()), section, config, untouched=True)


def write_merged_card(folder: Path, config: LocalizedConfig, training: Iterable[str]) -> None:
    """The card of a base model with the adapter merged into it."""
    section = _section(
        f"{EXPORTED}\n\n# {config.title} merged into its base model",
        "A low-rank adapter, trained with localora and added to the weights of its base model: a checkpoint like any "
        "other.",
        [*_rows(config), *training],
        f'from transformers import {_loader(config)}\n\nmodel = {_loader(config)}.from_pretrained("{HERE}")',
    )
    card = ModelCard.from_template(ModelCardData(base_model_relation="merge"))
    _write(folder / CARD, card, section, config, untouched=True, library="transformers")


def _adapter_section(config: LocalizedConfig, training: Iterable[str]) -> str:
    return _section(
        f"# {config.title} adapter",
        "A low-rank adapter that acts where the weight matrices need it, trained with localora on top of\n"
        "[PEFT](https://github.com/huggingface/peft).",
        [*_rows(config), *training],
        f"import localora  # registers the method with PEFT\n{_load_on_base(config)}",
        before="## Load it\n\n",
        after="A process that has not imported localora ends in `KeyError: 'LOCALIZED'`. For one that never shall, and "
        "for vLLM,\nSGLang, llama.cpp and Ollama, make plain LoRA of it, which computes the same:\n\n"
        "    localora export this-folder my-plain-lora\n\n",
    )


def _section(head: str, about: str, rows: Iterable[str], code: str, before: str = "", after: str = "") -> str:
    """Heading, a sentence, a table, how to load it in Python with what is said before and after that, the papers."""
    table = "\n".join(["| | |", "| --- | --- |", *rows])
    return f"{head}\n\n{about}\n\n{table}\n\n{before}```python\n{code}\n```\n\n{after}{PAPERS}"


def _load_on_base(config: LocalizedConfig) -> str:
    loader, base = _loader(config), hub_id(config.base_model_name_or_path) or "the base model"
    return f"""from peft import PeftModel
from transformers import {loader}

base = {loader}.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{HERE}")"""


def _loader(config: LocalizedConfig) -> str:
    return LOADERS.get(str(config.task_type), "AutoModel")


def _rows(config: LocalizedConfig) -> list[str]:
    base = hub_id(config.base_model_name_or_path)
    events = [f"{fraction:.0%}" for fraction in config.repartition]
    return [
        f"| base model | {f'[{base}](https://huggingface.co/{base})' if base else 'a local folder'} |",
        f"| method | {config.title} |",
        f"| r | {config.r}: as many trainable parameters as LoRA of this rank |",
        *([f"| clusters K | {config.clusters} |"] if config.method == "cps-lora" else []),  # type: ignore[attr-defined]
        *([f"| block | {config.local_size:.0%} of rows and columns |"] if config.method == "g-lora" else []),  # type: ignore[attr-defined]
        f"| global share of the rank | {config.global_share:g} |",
        f"| scale of the update | {config.layer_scale(''):g}{', rank-stabilised' if config.use_rslora else ''} |",
        f"| layers | {_names(config.target_modules)} |",
        f"| placement | {config.placement} |",
        "| events | "
        + (f"every {config.repartition_every} steps" if config.repartition_every else ", ".join(events) or "none")
        + (" of training |" if events else " |"),
        *([f"| frozen term, from past events | rank {config.consolidated_rank} |"] if config.consolidated_rank else []),
    ]


def _names(target_modules: Iterable[str] | str | None) -> str:
    if target_modules is None or isinstance(target_modules, str):
        return f"`{target_modules or 'the default'}`"
    return ", ".join(f"`{name}`" for name in sorted(target_modules))


def _write(
    path: Path, card: ModelCard, section: str, config: LocalizedConfig, *, untouched: bool, library: str = "peft"
) -> None:
    """Into the card's metadata, and in place of its marked section, or of the whole text if that is PEFT's template."""
    base, peft, data = hub_id(config.base_model_name_or_path), library == "peft", cast(ModelCardData, card.data)
    kept = {tag for tag in data.tags or [] if not tag.startswith("base_model:")}  # PEFT puts a path there
    ours = {"localora", "lora", *(["peft"] if peft else []), *([f"base_model:adapter:{base}"] if peft and base else [])}
    data.library_name = library
    data.tags = sorted(kept | ours)
    data.base_model = base  # None leaves the key out
    if config.task_type == "CAUSAL_LM":
        data.pipeline_tag = "text-generation"
    marked, text = f"{BEGIN}\n{section.strip()}\n{END}", str(card.text)
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        text = before + marked + rest.partition(END)[2]
    else:
        text = marked if untouched else f"{marked}\n\n{text}"
    card.text = text.strip() + "\n"
    card.save(path)
