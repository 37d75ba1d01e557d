"""Two processes with different batches: signals are summed, labels agree, and training steps stay in step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from localora import PlacementError, calibrate
from localora.lifecycle.processes import check_same, decide_once
from method_table import METHODS, Method
from tiny_models import LLAMA_TARGETS, tiny_llama, token_batch

pytestmark = pytest.mark.slow


def unplaced(method: Method) -> PeftModel:
    config = method.config(target_modules=LLAMA_TARGETS, placement="calibrate", init_weights=True)
    torch.manual_seed(1)
    return get_peft_model(tiny_llama().double(), config).double()


def batches_of(rank: int) -> list[dict[str, torch.Tensor]]:
    return [token_batch(seed=10 * rank + i) for i in range(2)]


def train(rank: int, method: Method) -> dict[str, Any]:
    model = unplaced(method)
    report = calibrate(model, batches_of(rank)) if method.places else None
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(3):
        loss = parallel(**token_batch(seed=100 * rank + step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {
        "partitions": [layer.partition for layer in report.layers] if report else [],
        "losses": losses,
        "state": {key: value for key, value in model.state_dict().items() if "localized_" in key},
    }


def errors(rank: int) -> dict[str, str]:
    def decide() -> None:
        raise PlacementError("only process 0 decides")

    raised = {}
    with pytest.raises(PlacementError) as decision:
        decide_once(decide)
    raised["decision"] = str(decision.value)
    assert decide_once(lambda: rank) == 0
    check_same({"placement": "same"}, "")
    with pytest.raises(RuntimeError) as disagreement:
        check_same({"placement": f"digest-{rank}"}, "start all with the same seed")
    raised["disagreement"] = str(disagreement.value)
    return raised


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results: dict[str, Any] = {method.name: train(rank, method) for method in METHODS}
    torch.save({**results, "errors": errors(rank)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    for method in METHODS:
        one, other = first[method.name], second[method.name]
        assert one["losses"] != other["losses"]  # they did see different data
        assert one["partitions"] == other["partitions"]
        assert all(torch.equal(value, other["state"][key]) for key, value in one["state"].items())
        if not method.places:
            continue
        # One process with all batches finds the same as two with half of them each, and not what one half says.
        alone = calibrate(unplaced(method), batches_of(0) + batches_of(1))
        assert [layer.partition for layer in alone.layers] == one["partitions"]
        half = calibrate(unplaced(method), batches_of(0))
        assert [layer.partition for layer in half.layers] != one["partitions"]
    for result in (first, second):
        assert result["errors"]["decision"] == "only process 0 decides"
        assert "process 1 has another placement than process 0; start all" in result["errors"]["disagreement"]
