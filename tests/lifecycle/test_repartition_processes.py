"""Two processes with different batches hold the same labels, factors and moments after an event."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from moving import adapted_mlp, partition, trainable
from torch import Tensor, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from localora import CalibrationError, Repartitioner, ScheduleError, calibrate
from localora.adapter.model import adapted_layers
from localora.lifecycle import planning
from localora.lifecycle.resume import read_state, write_state
from tiny_models import mlp_batch

pytestmark = pytest.mark.slow

TRAINING = {"repartition_observe": "training"}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "cps-lora": ("cps-lora", {}),
    "g-lora": ("g-lora", {}),
    "training": ("cps-lora", TRAINING),
    "normalised": ("cps-lora", {**TRAINING, "repartition_normalise": True}),
}
SUMMED = ("Y", "Z", "row_squares", "col_squares")


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results: dict[str, Any] = {run: trained(rank, *RUNS[run], Path(folder, run)) for run in RUNS}
    torch.save({**results, "errors": errors(rank, Path(folder))}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def trained(rank: int, method: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    model = adapted_mlp(method, repartition=[0.4], settle=1.0, **options)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    parallel = DistributedDataParallel(model)
    repartitioner = Repartitioner(model, optimizer, 5, [mlp_batch(seed=1000 * rank + seed) for seed in range(3)])
    losses, own, planned_on = [], {}, {}
    plan = planning._signal_factors

    def record(layer: Any, name: str, sketch: Any, config: Any) -> tuple[Tensor, Tensor]:
        if options:
            planned_on[f"{layer.out_features}"] = {k: v.clone() for k, v in sketch.state_dict().items()}
        return plan(layer, name, sketch, config)

    for step in range(5):
        with repartitioner.observe():
            loss = parallel(**mlp_batch(seed=100 * rank + step))["loss"]
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if repartitioner.has_state and step == 0:
            write_state(repartitioner.state_dict(), folder, "default")
            repartitioner.load_state_dict(read_state(folder, "default"))  # its own, not that of the other
        if step == 1 and repartitioner.signal:
            repartitioner.signal.end_step()
            own = {
                f"{layer.out_features}": repartitioner.signal.gradients[key].state_dict()
                for key, layer in repartitioner.layers.items()
            }
            own = {key: {k: v.clone() for k, v in state.items()} for key, state in own.items()}
        with mock.patch.object(planning, "_signal_factors", record):
            repartitioner.step()
    repartitioner.finish()
    labels = [partition(layer) for _, layer in adapted_layers(model, "default")]
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return {
        "losses": losses,
        "event": repartitioner.events[0].to_dict(),
        "labels": [tensor for p in labels for tensor in (p.row_labels, p.col_labels)],
        "tensors": [p.detach() for p in trainable(model)] + moments,
        "own": own,
        "planned_on": planned_on,
    }


def errors(rank: int, folder: Path) -> list[str]:
    """Process 1 alone has an empty data set, a batch of bad numbers, no state to resume from: none waits for it."""
    own_error = {0: RuntimeError, 1: CalibrationError}[rank]
    bad = [mlp_batch(seed=0), mlp_batch(seed=1)]
    bad[1]["x"][0, 0] = float("nan") if rank else 0.0
    raised = []
    for batches in ([] if rank else [mlp_batch()], bad):
        with pytest.raises(own_error) as error:
            calibrate(adapted_mlp("cps-lora", placement="calibrate"), batches)
        assert type(error.value) is own_error
        raised.append(str(error.value))
    if rank == 0:
        write_state({"settled": torch.tensor(True)}, folder / "one", "default")
    with pytest.raises(ScheduleError if rank else RuntimeError) as missing:
        read_state(folder / "one", "default")
    return [*raised, str(missing.value)]


def test_processes_agree_after_an_event_and_fail_together(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for run in RUNS:
        first, second = (result[run] for result in results)
        assert first["losses"] != second["losses"]  # they did see different data
        assert first["event"]["loss_before"] != second["event"]["loss_before"]
        assert first["event"]["step"] == second["event"]["step"] == 2
        assert first["event"]["rows_moved"] == second["event"]["rows_moved"] > 0
        for key in ("labels", "tensors"):
            assert all(torch.equal(a, b) for a, b in zip(first[key], second[key], strict=True)), (run, key)
    for run in ("training", "normalised"):
        first, second = (result[run] for result in results)
        assert not second["planned_on"]  # labels are decided once
        for layer, state in first["planned_on"].items():
            for key in SUMMED[: 4 if run == "normalised" else 2]:
                a, b = first["own"][layer][key], second["own"][layer][key]
                assert not torch.allclose(a, b)
                torch.testing.assert_close(state[key], a + b)
    ours, theirs = results[0]["errors"], results[1]["errors"]
    assert [f"process 1 failed: CalibrationError: {text}" for text in theirs[:2]] == ours[:2]
    assert "no batches" in theirs[0]
    assert "loss of calibration batch 2 is nan" in theirs[1]
    assert f"process 1 failed: ScheduleError: {theirs[2]}" == ours[2]
    assert "localora_repartition_default_1.safetensors is missing" in theirs[2]
