"""Two processes with different batches hold the same labels, factors and moments after an event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from moving import adapted_mlp, partition, train, trainable
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from localora import Repartitioner
from localora.tuner.model import adapted_layers
from tiny_models import mlp_batch

METHODS = ("cps-lora", "g-lora")


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save({method: trained(rank, method) for method in METHODS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def trained(rank: int, method: str) -> dict[str, Any]:
    model = adapted_mlp(method, repartition=[0.4], settle=1.0)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    parallel = DistributedDataParallel(model)
    repartitioner = Repartitioner(model, optimizer, 5, [mlp_batch(seed=1000 * rank + seed) for seed in range(3)])
    losses = []
    for step in range(5):
        losses += train(parallel, optimizer, 1, first=100 * rank + step)
        repartitioner.step()
    repartitioner.finish()
    labels = [partition(layer) for _, layer in adapted_layers(model, "default")]
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return {
        "losses": losses,
        "event": repartitioner.events[0].to_dict(),
        "labels": [tensor for p in labels for tensor in (p.row_labels, p.col_labels)],
        "tensors": [p.detach() for p in trainable(model)] + moments,
    }


def test_processes_agree_after_an_event(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for method in METHODS:
        first, second = (result[method] for result in results)
        assert first["losses"] != second["losses"]  # they did see different data
        assert first["event"]["loss_before"] != second["event"]["loss_before"]
        assert first["event"]["step"] == second["event"]["step"] == 2
        assert first["event"]["rows_moved"] == second["event"]["rows_moved"] > 0
        for key in ("labels", "tensors"):
            assert all(torch.equal(a, b) for a, b in zip(first[key], second[key], strict=True)), (method, key)
