"""What a run's record says that its adapter's model card should: model, data, steps, loss before and after."""

from __future__ import annotations

from pathlib import Path

from localora.lab.training.record import RunRecord


def facts_of(record: RunRecord) -> list[str]:
    """A fact a row. Paths are given by their last part: the rest is of one machine, and cards are published."""
    model = str(record.recipe["model"]["name"])
    name = Path(model).name if Path(model).expanduser().exists() else model
    facts = [
        f"base model {name}",
        f"data {record.data['name']}, {record.data['sizes']['train']} examples",
        f"{record.recipe['training']['steps']} steps, seed {record.seed}",
    ]
    if record.after is not None:
        facts.append(
            f"loss {record.before.loss:.4f} before, {record.after.loss:.4f} after: nats per completion token, on "
            f"{record.after.examples} test examples"
        )
    return [fact.replace("|", "/") for fact in facts]
