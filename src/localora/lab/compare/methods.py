"""What each method trains on one matrix, and the rank of its own that makes it cost what LoRA of rank r costs.

Shape legend
    m   rows of W (outputs)
    n   columns of W (inputs)
    r   LoRA-equivalent rank: the budget is r (m + n) a matrix
    q   the method's own rank of that matrix

Most methods cost the budget at q = r. DoRA, BD-LoRA and MiSS do not: each costs `fixed + per_rank * q`, and q is solved
for. AdaLoRA costs it at its start, which is what counts: those parameters have gradients and optimizer state, although
not all are left at the end. Full fine-tuning has no rank and is far over, so it has a label. Where ranks may differ
by layer, what one layer is over or under is carried to the next, so that the sum is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from localora.lab.model.targets import Target
from localora.lab.recipe.peft_methods import BdLoraMethod, LoraMethod, MethodBase, MissMethod

# PEFT 0.21 has these too; why no plan can name them.
NOT_AVAILABLE = {
    "lora-fa": "PEFT has it as an optimizer, not as a method",
}
# The budget_label of methods that cannot have the budget of the others, unless the plan gives one.
OWN_BUDGETS = {"full": "all weights"}


class Cost(NamedTuple):
    """Trainable parameters of one matrix: fixed + per_rank * q, for q a multiple of step."""

    fixed: int
    per_rank: int
    step: int = 1


def _dora(method: MethodBase, target: Target) -> Cost:
    return Cost(fixed=target.m, per_rank=target.m + target.n)  # one magnitude an output


def _bd_lora(method: MethodBase, target: Target) -> Cost:
    assert isinstance(method, BdLoraMethod)
    b = method.blocks
    short = target.name.rpartition(".")[2]
    row_sharded = any(name in short for name in method.row_sharded)
    per_rank = target.m + target.n // b if row_sharded else target.m // b + target.n
    return Cost(fixed=0, per_rank=per_rank, step=b)


def _miss(method: MethodBase, target: Target) -> Cost:
    return Cost(fixed=0, per_rank=target.m)


COSTS: dict[str, Callable[[MethodBase, Target], Cost]] = {"dora": _dora, "bd-lora": _bd_lora, "miss": _miss}


def match_budget(method: MethodBase, targets: Sequence[Target]) -> MethodBase:
    """The same method with the rank of its own that comes nearest to r (m + n) parameters over `targets`."""
    cost = COSTS.get(method.name)
    if cost is None or not isinstance(method, LoraMethod):
        return method
    costs = [cost(method, target) for target in targets]
    if isinstance(method, MissMethod):
        budget = sum(method.r * (target.m + target.n) for target in targets)
        per_rank = sum(c.per_rank for c in costs)
        return method.model_copy(update={"own_rank": method.own_rank or max(1, round(budget / per_rank))})
    if method.ranks:
        return method
    ranks, carried = {}, 0.0
    for target, c in zip(targets, costs, strict=True):
        wanted = method.r * (target.m + target.n) + carried
        q = max(c.step, c.step * round((wanted - c.fixed) / (c.per_rank * c.step)))
        carried = wanted - c.fixed - c.per_rank * q
        if q != method.r:
            ranks[target.name] = q
    return method.model_copy(update={"ranks": ranks})
