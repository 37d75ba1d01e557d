"""Two processes with different batches hold the same labels, frozen terms and factors after an event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from moving import adapted_mlp, partition, trainable
from torch import multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from localora import CalibrationError, Repartitioner, ScheduleError, calibrate
from localora.adapter.factors import whole
from localora.adapter.status import adapted_layers
from localora.lifecycle.processes import ProcessError
from tiny_models import mlp_batch

pytestmark = pytest.mark.slow

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "found": ("cps-lora", {}),
    "block": ("g-lora", {}),
    "random, bounded": ("cps-lora", {"repartition_place": "random", "frozen_rank": 5}),
    "merged": ("hybrid", {"frozen": "merged"}),
    "plain": ("lora-by-share", {}),
}
SHARDED = ("found", "block", "plain")


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results: dict[str, Any] = {run: trained(rank, *RUNS[run]) for run in RUNS}
    results["sharded"] = {run: sharded(rank, *RUNS[run]) for run in SHARDED}
    torch.save({**results, "errors": errors(rank)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def trained(rank: int, method: str, options: dict[str, Any]) -> dict[str, Any]:
    model = adapted_mlp(method, repartition=[0.4], **options)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    parallel = DistributedDataParallel(model)
    repartitioner = Repartitioner(model, optimizer, 5, [mlp_batch(seed=1000 * rank + seed) for seed in range(3)])
    losses = []
    for step in range(5):
        loss = parallel(**mlp_batch(seed=100 * rank + step))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        repartitioner.step()
    repartitioner.finish()
    labels = [partition(layer) for _, layer in adapted_layers(model, "default") if method != "lora-by-share"]
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return {
        "losses": losses,
        "event": repartitioner.events[0].to_dict(),
        "labels": [tensor for p in labels for tensor in (p.row_labels, p.col_labels)],
        "tensors": [value.detach() for value in model.state_dict().values()] + moments,
    }


def sharded(rank: int, method: str, options: dict[str, Any]) -> dict[str, Any]:
    """The same under FSDP2: each process holds half of every factor. Full tensors, and the change of the logits."""
    model = adapted_mlp(method, repartition=[0.4], **options)
    layers = [layer for _, layer in adapted_layers(model, "default")]
    mesh = init_device_mesh("cpu", (2,))
    for module in (*layers, model):
        fully_shard(module, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in trainable(model))
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    repartitioner = Repartitioner(model, optimizer, 5, [mlp_batch(seed=1000 * rank + seed) for seed in range(2)])
    changes, states = [], []
    for step in range(5):
        model(**mlp_batch(seed=100 * rank + step))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            before = model(mlp_batch()["x"])["logits"]
        if repartitioner.step():
            with torch.no_grad():
                after = model(mlp_batch()["x"])["logits"]
            changes.append(float((after - before).norm() / before.norm()))
            states.append(len(optimizer.state))
            started = [whole(parameter.detach()) for parameter in trainable(model)]
    held = [layer.state_dict() for layer in layers]
    tensors = [tensor for state in held for key, tensor in state.items() if key.startswith("localized_")]
    return {
        "changes": changes,
        "states": states,
        "started": started,
        "tensors": [whole(tensor.detach()) for tensor in tensors],
    }


def errors(rank: int) -> list[str]:
    """Process 1 alone has an empty data set, a batch of bad numbers, a factor of them: none waits for it."""
    own_error = {0: ProcessError, 1: CalibrationError}[rank]
    bad = [mlp_batch(seed=0), mlp_batch(seed=1)]
    bad[1]["x"][0, 0] = float("nan") if rank else 0.0
    raised = []
    for batches in ([] if rank else [mlp_batch()], bad):
        with pytest.raises(own_error) as error:
            calibrate(adapted_mlp("cps-lora", placement="calibrate"), batches)
        assert type(error.value) is own_error
        raised.append(str(error.value))
    model = adapted_mlp("cps-lora", repartition=[1.0])
    with torch.no_grad():
        trainable(model)[0][0, 0] = float("nan") if rank else 0.0
    with pytest.raises(ScheduleError if rank else ProcessError) as diverged:
        Repartitioner(model, None, 1, [mlp_batch()]).step()
    return [*raised, str(diverged.value)]


def test_processes_agree_after_an_event_and_fail_together(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for run in RUNS:
        first, second = (result[run] for result in results)
        assert first["losses"] != second["losses"]  # they did see different data
        assert first["event"]["loss_before"] != second["event"]["loss_before"]
        assert first["event"]["step"] == second["event"]["step"] == 2
        assert first["event"]["rows_moved"] == second["event"]["rows_moved"]
        assert first["event"]["frozen_rank"] > 0
        for key in ("labels", "tensors"):
            assert len(first[key]) == len(second[key])
            assert all(torch.equal(a, b) for a, b in zip(first[key], second[key], strict=True)), (run, key)
    for run in SHARDED:
        first, second = (result["sharded"][run] for result in results)
        assert max(first["changes"]) < 1e-6
        assert first["states"] == [0]
        assert len(first["tensors"]) == len(second["tensors"]) > 4
        assert all(torch.equal(a, b) for a, b in zip(first["tensors"], second["tensors"], strict=True)), run
        whole_run = adapted_mlp(*RUNS[run][:1], repartition=[0.4], **RUNS[run][1])
        Repartitioner(whole_run, None, 5, [mlp_batch()], done_steps=1).step()
        for parameter, started in zip(trainable(whole_run), first["started"], strict=True):
            assert torch.equal(parameter, started)  # what an unsharded run starts from
    ours, theirs = results[0]["errors"], results[1]["errors"]
    assert [f"process 1 failed: CalibrationError: {text}" for text in theirs[:2]] == ours[:2]
    assert "no batches" in theirs[0]
    assert "loss of calibration batch 2 is nan" in theirs[1]
    assert f"process 1 failed: ScheduleError: {theirs[2]}" == ours[2]
    assert "no longer finite" in theirs[2]
