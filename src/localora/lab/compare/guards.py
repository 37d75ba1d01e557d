"""What would make a comparison unfair is refused: before any run starts, and where a file changed between two runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from localora.lab.compare.plan import PlanError, Published, ResolvedPlan
from localora.lab.compare.runs import RunSpec
from localora.lab.compare.store import Outcome
from localora.lab.data.example import DataError, Example, TaskData
from localora.lab.data.generated.registry import BY_HEART
from localora.lab.data.load import load_task
from localora.lab.data.published.registry import parse_tasks
from localora.lab.data.split import prompt_hash
from localora.lab.evaluation.tasks import load_tasks

BUDGET_TOLERANCE = 0.01
NOW = "the data as they are now"

Hashes = Mapping[str, str]  # split -> digest of its examples


def check_budgets(resolved: ResolvedPlan) -> None:
    """Every method trains as many parameters as LoRA at the plan's r, within one percent, or has a `budget_label`.

    Raises:
        PlanError: names each method that does not.
    """
    problems = [
        f"methods.{c.label}: trains {c.trainable:,} parameters, {c.budget_ratio - 1:+.1%} of LoRA's {c.budget:,} at r "
        f"{resolved.plan.r}; the most is {BUDGET_TOLERANCE:.0%}. Change its rank, or give it a budget_label, which "
        "every table then shows"
        for c in resolved.entries
        if abs(c.trainable - c.budget) > BUDGET_TOLERANCE * c.budget and c.budget_label is None
    ]
    if problems:
        raise PlanError(resolved.name, *problems)


def check_rate_seeds(resolved: ResolvedPlan) -> None:
    """Learning rates are chosen with at least two seeds.

    Raises:
        PlanError: fewer.
    """
    seeds = resolved.plan.learning_rates.seeds
    if len(set(seeds)) < 2:
        raise PlanError(
            resolved.name,
            f"learning_rates.seeds: {seeds} is one seed, and a rate that one seed's luck has chosen makes methods "
            "differ that do not; give two or more",
        )


def check_data(resolved: ResolvedPlan) -> dict[str, TaskData]:
    """Load every task; no prompt that is trained, calibrated or tuned on, in any task, occurs in any task's test.

    Nor in a published task's, in the form of any of its protocols.

    Returns:
        The tasks, so that they need not be loaded twice.

    Raises:
        PlanError: names the tasks, how many prompts they share, and some of them.
    """
    tasks: dict[str, TaskData] = {}
    problems: list[str] = []
    for name, spec in resolved.plan.tasks.items():
        try:
            tasks[name] = load_task(spec)
        except DataError as error:
            problems.append(f"tasks.{name}: {error}")
    held_out: dict[str, Sequence[Example]] = {name: task.test for name, task in tasks.items()}
    for name, spec in resolved.plan.watch.items():
        try:
            held_out[f"watch.{name}"] = load_task(spec).test
        except DataError as error:
            problems.append(f"watch.{name}: {error}")
    try:
        held_out |= _published(resolved.plan.published)
    except DataError as error:
        problems.append(f"published.tasks: {error}")
    problems += _shared(tasks, held_out)
    wanted = resolved.plan.learning_rates.validation_examples
    problems += [
        f"tasks.{name}: has {len(task.validation)} validation examples, and learning_rates.validation_examples is "
        f"{wanted}; raise data's validation_size or lower that"
        for name, task in tasks.items()
        if len(task.validation) < wanted
    ]
    if problems:
        raise PlanError(resolved.name, *problems)
    return tasks


def _published(published: Published) -> dict[str, Sequence[Example]]:
    """The test examples in every form, and without their choices, as a file of prompts and completions has them."""
    tasks = {name.task.name: name.task for name in parse_tasks(published.tasks)}
    forms = [f"{name}:{protocol}" for name, task in tasks.items() for protocol in task.protocols]
    return {
        str(task.name): [*task.examples, *(replace(e, choices=()) for e in task.examples if e.choices)]
        for task in load_tasks(forms, published.data)
    }


def _shared(tasks: Mapping[str, TaskData], held_out: Mapping[str, Sequence[Example]]) -> list[str]:
    problems = []
    for name, task in tasks.items():
        chosen_on, trained_on = ({prompt_hash(e) for e in examples} for examples in (task.validation, task.train))
        for other, examples in held_out.items():
            recalled = other == name and task.name == BY_HEART  # asks for what was trained on
            seen = chosen_on if recalled else chosen_on | trained_on
            shared = [example.id for example in examples if prompt_hash(example) in seen]
            if shared:
                problems.append(
                    f"tasks.{name}: {len(shared)} prompt(s) that it trains, calibrates or chooses learning rates on "
                    f"occur in the test split of {other} ({', '.join(shared[:3])}); remove them from one of the two"
                )
    return problems


def check_same_data(finished: Mapping[RunSpec, Outcome], present: Mapping[str, Hashes] | None = None) -> None:
    """All `finished` runs of a task had the same splits, and all that measured a published task the same items.

    `present` are the digests of each task's splits today, where they are known.

    Raises:
        PlanError: names each run whose data differ from those of an earlier one, or from today's.
    """
    first: dict[tuple[str, str], tuple[str, str]] = {
        (task, split): (digest, NOW) for task, hashes in (present or {}).items() for split, digest in hashes.items()
    }
    problems = []
    for spec, outcome in finished.items():
        for task, part, digest in _seen(spec, outcome):
            known, where = first.setdefault((task, part), (digest, str(spec.folder)))
            if digest != known:
                problems.append(
                    f"{spec.folder}: its {part} examples of {task} differ from {where}, so they cannot be compared; "
                    "remove the folders of the runs on the wrong data, or start anew in another folder (--out)"
                )
    if problems:
        raise PlanError("data", *problems)


def _seen(spec: RunSpec, outcome: Outcome) -> Iterator[tuple[str, str, str]]:
    """(task, part, digest) of everything a run was trained or measured on."""
    assert outcome.record is not None
    for split, digest in outcome.record.data["hashes"].items():
        yield spec.task, split, digest
    after = outcome.record.after
    if spec.stage == "final" and after is not None and after.items is not None:
        yield spec.task, "scored", " ".join(after.items.ids)
    for name, found in (outcome.watched.after if outcome.watched else {}).items():
        if found.items is not None:
            yield name, "watched", " ".join(found.items.ids)
    for name, found in outcome.tasks.items():
        if found.items is not None:
            yield name, "published", " ".join(found.items.ids)
