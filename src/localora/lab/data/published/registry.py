"""The published tasks: where each one's splits are, on disk and on the Hub.

On disk a task is `FOLDER/FAMILY/NAME_SPLIT.jsonl` (or `FOLDER/NAME_SPLIT.jsonl`), in the formats of schemas.py. On the
Hub each data set has its own columns; hub_rows.py turns them into the same formats, so both ways meet there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from localora.lab.data.example import DataError
from localora.lab.data.published import hub_rows

Family = Literal["commonsense", "math", "code"]
Protocol = Literal["likelihood", "llm-adapters", "rationale", "execution"]


@dataclass(frozen=True)
class HubSource:
    """A Hub data set: its name, configuration, our split names -> its own, and its rows -> our formats."""

    dataset: str
    config: str | None
    splits: Mapping[str, str]
    convert: Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class PublishedTask:
    """One task. `option` is the answer word of the llm-adapters protocol (see adapters_style.py)."""

    name: str
    family: Family
    hub: HubSource | None
    option: str = ""

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The first is what the bare name means."""
        ways: dict[str, tuple[Protocol, ...]] = {
            "commonsense": ("likelihood", "llm-adapters"),
            "math": ("rationale",),
            "code": ("execution",),
        }
        return ways[self.family]


_TRAIN_TEST = {"train": "train", "test": "test"}
_TRAIN_VALIDATION = {"train": "train", "test": "validation"}  # the published test has no answers

_ALL = (
    PublishedTask("boolq", "commonsense", HubSource("google/boolq", None, _TRAIN_VALIDATION, hub_rows.boolq)),
    PublishedTask("piqa", "commonsense", HubSource("baber/piqa", None, _TRAIN_VALIDATION, hub_rows.piqa), "solution"),
    PublishedTask("siqa", "commonsense", HubSource("lighteval/siqa", None, _TRAIN_VALIDATION, hub_rows.siqa), "answer"),
    PublishedTask(
        "hellaswag",
        "commonsense",
        HubSource("Rowan/hellaswag", None, _TRAIN_VALIDATION, hub_rows.hellaswag),
        "ending",
    ),
    PublishedTask(
        "winogrande",
        "commonsense",
        HubSource("allenai/winogrande", "winogrande_xl", _TRAIN_VALIDATION, hub_rows.winogrande),
        "option",
    ),
    PublishedTask(
        "arc_easy", "commonsense", HubSource("allenai/ai2_arc", "ARC-Easy", _TRAIN_TEST, hub_rows.arc), "answer"
    ),
    PublishedTask(
        "arc_challenge",
        "commonsense",
        HubSource("allenai/ai2_arc", "ARC-Challenge", _TRAIN_TEST, hub_rows.arc),
        "answer",
    ),
    PublishedTask(
        "openbookqa",
        "commonsense",
        HubSource("allenai/openbookqa", "main", _TRAIN_TEST, hub_rows.openbookqa),
        "answer",
    ),
    PublishedTask("gsm8k", "math", HubSource("openai/gsm8k", "main", _TRAIN_TEST, hub_rows.gsm8k)),
    PublishedTask("svamp", "math", HubSource("ChilleD/SVAMP", None, _TRAIN_TEST, hub_rows.svamp)),
    PublishedTask("multiarith", "math", HubSource("ChilleD/MultiArith", None, _TRAIN_TEST, hub_rows.multiarith)),
    PublishedTask("addsub", "math", None),
    PublishedTask("singleeq", "math", None),
    PublishedTask("aqua", "math", HubSource("deepmind/aqua_rat", "raw", _TRAIN_TEST, hub_rows.aqua)),
    PublishedTask(
        "humaneval", "code", HubSource("openai/openai_humaneval", None, {"test": "test"}, hub_rows.unchanged)
    ),
    PublishedTask(
        "mbpp",
        "code",
        HubSource(
            "google-research-datasets/mbpp",
            "full",
            {"train": "train", "validation": "validation", "test": "test"},
            hub_rows.unchanged,
        ),
    ),
)
TASKS: dict[str, PublishedTask] = {task.name: task for task in _ALL}
FAMILIES: dict[str, tuple[str, ...]] = {
    family: tuple(task.name for task in _ALL if task.family == family) for family in ("commonsense", "math", "code")
}


@dataclass(frozen=True)
class TaskName:
    """A task and its protocol, as in `boolq:llm-adapters`; `str()` writes it in full."""

    task: PublishedTask
    protocol: Protocol

    def __str__(self) -> str:
        return f"{self.task.name}:{self.protocol}"


def parse_tasks(names: Sequence[str]) -> list[TaskName]:
    """Tasks from `NAME` or `NAME:PROTOCOL`, where NAME is a task or a family (all tasks of it).

    Raises:
        DataError: an unknown name or protocol, or the same task and protocol twice.
    """
    chosen: list[TaskName] = []
    for text in names:
        name, _, protocol = text.partition(":")
        for member in FAMILIES.get(name, (name,)):
            task = TASKS.get(member)
            if task is None:
                raise DataError(f"no task is called {name!r}; known: {', '.join([*FAMILIES, *TASKS])}")
            if protocol and protocol not in task.protocols:
                raise DataError(f"{member} has no protocol {protocol!r}; it has {', '.join(task.protocols)}")
            chosen.append(TaskName(task, next((p for p in task.protocols if p == protocol), task.protocols[0])))
    twice = {str(name) for name in chosen if chosen.count(name) > 1}
    if twice:
        raise DataError(f"given twice: {', '.join(sorted(twice))}")
    return chosen
