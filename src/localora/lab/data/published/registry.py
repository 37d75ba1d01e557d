"""The published tasks: where the test examples of each are, on disk and on the Hub.

On disk they are `FOLDER/FAMILY/NAME_test.jsonl` (or `FOLDER/NAME_test.jsonl`), in the formats of schemas.py. On the Hub
each data set has its own columns; hub_rows.py turns them into the same formats, so both ways meet there.
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
class PublishedTask:
    """One task, and the Hub data set it is read from, if there is one in a form we know."""

    name: str
    family: Family
    dataset: str | None = None
    convert: Callable[[Mapping[str, Any]], dict[str, Any]] = dict  # of a row to our formats; code has ours already
    config: str | None = None
    split: str = "test"  # with answers, which some published test splits lack
    option: str = ""  # the answer word of the llm-adapters protocol (see load.py)

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The first is what the bare name means."""
        ways: dict[str, tuple[Protocol, ...]] = {
            "commonsense": ("likelihood", "llm-adapters"),
            "math": ("rationale",),
            "code": ("execution",),
        }
        return ways[self.family]


_ALL = (
    PublishedTask("boolq", "commonsense", "google/boolq", hub_rows.boolq, split="validation"),
    PublishedTask("piqa", "commonsense", "baber/piqa", hub_rows.piqa, split="validation", option="solution"),
    PublishedTask("siqa", "commonsense", "lighteval/siqa", hub_rows.siqa, split="validation", option="answer"),
    PublishedTask(
        "hellaswag", "commonsense", "Rowan/hellaswag", hub_rows.hellaswag, split="validation", option="ending"
    ),
    PublishedTask(
        "winogrande", "commonsense", "allenai/winogrande", hub_rows.winogrande, "winogrande_xl", "validation", "option"
    ),
    PublishedTask("arc_easy", "commonsense", "allenai/ai2_arc", hub_rows.arc, config="ARC-Easy", option="answer"),
    PublishedTask(
        "arc_challenge", "commonsense", "allenai/ai2_arc", hub_rows.arc, config="ARC-Challenge", option="answer"
    ),
    PublishedTask(
        "openbookqa", "commonsense", "allenai/openbookqa", hub_rows.openbookqa, config="main", option="answer"
    ),
    PublishedTask("gsm8k", "math", "openai/gsm8k", hub_rows.gsm8k, config="main"),
    PublishedTask("svamp", "math", "ChilleD/SVAMP", hub_rows.svamp),
    PublishedTask("multiarith", "math", "ChilleD/MultiArith", hub_rows.multiarith),
    PublishedTask("addsub", "math"),
    PublishedTask("singleeq", "math"),
    PublishedTask("aqua", "math", "deepmind/aqua_rat", hub_rows.aqua, config="raw"),
    PublishedTask("humaneval", "code", "openai/openai_humaneval"),
    PublishedTask("mbpp", "code", "google-research-datasets/mbpp", config="full"),
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
