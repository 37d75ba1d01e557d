"""Why a block of important rows and columns has been no better than a random one: `python -m benchmarks.taylor`.

Full fine-tuning says where the update wants to be. For each way to choose G-LoRA's block (global_share and local_size
as the config's defaults, every linear layer of the blocks), measured on the same batches and the same update dW:

    importance   share of sum |W * dL/dW| in the block: what the Taylor score maximises
    gradient     share of ||dL/dW||^2 in the block
    update       share of ||dW||^2 in the block, where dW is what full fine-tuning did
    beyond       share of ||dW||^2 that a local term of its rank can add to the best global term of its rank
    loss         share of full fine-tuning's fall in test loss that is left when dW is kept in the blocks alone
    adapter      the same when dW is cut to what G-LoRA can hold: the best global term and, of the rest, the best local
    stream       of the columns of the residual stream, the share that some layer's block reads

Shares of the layers are averaged; a random block has the area's share of all of them by expectation. Writes a figure
of how often each column of the residual stream is chosen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import torch
from torch import Tensor, nn

from localora.lab.data.batches import Collator
from localora.lab.evaluation.likelihood import mean_loss
from localora.lab.recipe.file import validate_recipe
from localora.lab.run.setup import Setup, load_setup
from localora.placement.budget import LayerBudget, global_local_budget
from localora.placement.partition import Partition
from localora.placement.random import random_partition
from localora.placement.taylor import plan_block

RANDOM = 5  # random blocks, averaged
Blocks = dict[str, Partition]


def prepared(model: str, batch_size: int) -> Setup:
    data = {"task": "functions", "difficulty": 2, "train_size": 10_000, "validation_size": 100, "test_size": 200}
    return load_setup(
        validate_recipe(
            {
                "model": {"name": model, "dtype": "float32"},
                "data": data,
                "method": {"name": "lora"},
                "training": {"max_length": 128, "batch_size": batch_size},
                "evaluation": {"examples": 200, "batch_size": 32},
            }
        )
    )


def batches(setup: Setup, size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Without end, each time through in another order."""
    collate, generator = Collator(setup.pad_id), torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(setup.train), generator=generator).tolist()
        for start in range(0, len(order) - size + 1, size):
            yield collate([setup.train[i] for i in order[start : start + size]])


class Observed:
    """The Taylor importance of each entry of one layer's weight, and its gradient, both summed over batches."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        m, n = layer.weight.shape
        self.I, self.G = torch.zeros(m, n), torch.zeros(m, n)

    def add(self) -> None:
        G = self.layer.weight.grad
        assert G is not None
        self.I += (self.layer.weight.detach() * G).abs()
        self.G += G


def choices(observed: dict[str, Observed], budgets: dict[str, LayerBudget]) -> dict[str, list[Blocks]]:
    """The blocks of every layer, by how they were chosen; several of what is random."""

    def chosen(score: Callable[[Observed], tuple[Tensor, Tensor]]) -> list[Blocks]:
        found = {}
        for name, seen in observed.items():
            local = budgets[name].local
            assert local is not None
            found[name] = plan_block(*score(seen), local.rows, local.cols)
        return [found]

    def drawn(seed: int) -> Blocks:
        found = {}
        for number, (name, budget) in enumerate(budgets.items()):
            assert budget.local is not None
            found[name] = random_partition(budget.m, budget.n, budget.local, 1000 * seed + number)
        return found

    return {
        "Taylor": chosen(lambda seen: (seen.I.sum(1), seen.I.sum(0))),
        "least important": chosen(lambda seen: (-seen.I.sum(1), -seen.I.sum(0))),
        "gradient": chosen(lambda seen: (seen.G.square().sum(1), seen.G.square().sum(0))),
        "random": [drawn(seed) for seed in range(RANDOM)],
    }


def terms(dW: Tensor, budget: LayerBudget, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The best global term of rank r_g, and of what it leaves in the block the best local term of rank r_l."""
    assert budget.local is not None
    whole = truncated(dW, budget.global_rank)
    rows, cols = mask.any(1), mask.any(0)
    local = torch.zeros_like(dW)
    local[rows.unsqueeze(1) & cols] = truncated((dW - whole)[rows][:, cols], budget.local.rank).flatten()
    return whole, local


def truncated(matrix: Tensor, rank: int) -> Tensor:
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/small-model/trained/model")
    parser.add_argument("--r", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400, help="of full fine-tuning")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/taylor-columns.png"))
    arguments = parser.parse_args()
    setup = prepared(arguments.model, arguments.batch_size)
    model = setup.model
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n}
    budgets = {name: global_local_budget(*layer.weight.shape, arguments.r, 0.5, 0.25) for name, layer in layers.items()}

    drawn = batches(setup, arguments.batch_size, seed=0)
    observed = {name: Observed(layer) for name, layer in layers.items()}
    for _ in range(8):
        model(**next(drawn)).loss.backward()
        for seen in observed.values():
            seen.add()
        model.zero_grad()
    blocks = choices(observed, budgets)

    start = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    before = mean_loss(model, setup.test, 32)
    optimizer = torch.optim.AdamW([layer.weight for layer in layers.values()], arguments.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, arguments.steps)
    for _ in range(arguments.steps):
        model(**next(drawn)).loss.backward()
        optimizer.step()
        schedule.step()
        model.zero_grad()
    after = mean_loss(model, setup.test, 32)
    dW = {name: layer.weight.detach() - start[name] for name, layer in layers.items()}
    print(f"full fine-tuning: test loss {before:.3f} -> {after:.3f}", flush=True)

    def share_of_fall(update: Callable[[str], Tensor]) -> float:
        with torch.no_grad():
            for name, layer in layers.items():
                layer.weight.copy_(start[name] + update(name))
        return (before - mean_loss(model, setup.test, 32)) / (before - after)

    width = model.config.hidden_size
    readers = [name for name, layer in layers.items() if layer.weight.shape[1] == width and "o_proj" not in name]
    print("| block | importance | gradient | update | beyond | loss | adapter | stream |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    counts = {}
    for way, several in blocks.items():
        rows = []
        for found in several:
            masks = {name: found[name].mask() for name in layers}
            held = {name: terms(dW[name], budgets[name], masks[name]) for name in layers}
            shares = [
                [
                    float((seen.I * masks[name]).sum() / seen.I.sum()),
                    float((seen.G.square() * masks[name]).sum() / seen.G.square().sum()),
                    float((dW[name].square() * masks[name]).sum() / dW[name].square().sum()),
                    float(held[name][1].square().sum() / dW[name].square().sum()),
                ]
                for name, seen in observed.items()
            ]
            counts[way] = torch.stack([found[name].col_labels >= 0 for name in readers]).sum(0)
            block = share_of_fall(lambda name, masks=masks: dW[name] * masks[name])
            adapter = share_of_fall(lambda name, held=held: held[name][0] + held[name][1])
            read = float((counts[way] > 0).float().mean())
            rows.append([*torch.tensor(shares).mean(0).tolist(), block, adapter, read])
        print(f"| {way} | " + " | ".join(f"{value:.3f}" for value in torch.tensor(rows).mean(0)) + " |", flush=True)
    area = torch.tensor([b.local.rows * b.local.cols / (b.m * b.n) for b in budgets.values() if b.local]).mean()
    print(f"area of the block: {area:.3f}; layers that read the stream: {len(readers)}")
    alone = share_of_fall(lambda name: truncated(dW[name], budgets[name].global_rank))
    print(f"share of the fall that the global term alone leaves: {alone:.3f}")
    figure(counts, len(readers), arguments.figure)


def figure(counts: dict[str, Tensor], readers: int, to: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    for way in ("Taylor", "random"):
        axes.plot(counts[way].sort(descending=True).values, label=way, drawstyle="steps-post")
    axes.set_xlabel("columns of the residual stream, most often chosen first")
    axes.set_ylabel(f"blocks of {readers} that read it")
    axes.legend(frameon=False)
    to.parent.mkdir(parents=True, exist_ok=True)
    shown.savefig(to, dpi=120)


if __name__ == "__main__":
    main()
