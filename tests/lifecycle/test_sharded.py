"""Real processes, two and four, that share or shard a model: each finds and learns what one process alone does."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sharded_run
import torch
from peft import PeftModel

from adapted_models import logits
from localora import calibrate
from localora.lifecycle.passes import CalibrationError
from patience import PATIENCE
from tiny_models import tiny_llama

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]


def run(kinds: list[str], world: int, folder: Path) -> None:
    """Two processes on each of `world` / 2 nodes, which are all this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(TESTS), str(TESTS / "lifecycle"), *sys.path])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    nodes = []
    for node in range(world // 2):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--nnodes={world // 2}"]
        where = [f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        command = [*torchrun, *where, sharded_run.__file__, *kinds, str(folder)]
        with (folder / f"node-{node}.log").open("w") as log:
            nodes.append(subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT))
    codes = [node.wait(PATIENCE) for node in nodes]
    logs = [(folder / f"node-{node}.log").read_text(encoding="utf-8") for node in range(len(nodes))]
    assert not any(codes), "\n".join(log[-6000:] for log in logs)


@pytest.mark.parametrize("world", [2, 4])
def test_as_one_process(world: int, tmp_path: Path) -> None:
    kinds = ["ddp", "fsdp2", "fsdp1", "fsdp1-peft"]
    run(kinds, world, tmp_path)
    check(kinds, world, tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("world", [2, 4])
def test_deepspeed_as_one_process(world: int, tmp_path: Path) -> None:
    kinds = ["zero2", "zero3"]
    run(kinds, world, tmp_path)
    check(kinds, world, tmp_path)


def check(kinds: list[str], world: int, folder: Path) -> None:
    alone: dict[tuple[str, bool], dict[str, Any]] = {}
    for method in sharded_run.METHODS:
        for events in {kind in sharded_run.WITH_EVENTS for kind in kinds}:
            home = folder / f"alone-{events}"
            alone[method, events] = sharded_run.train("plain", method, list(range(world)), home, events)
    for kind in kinds:
        for method in sharded_run.METHODS:
            events = kind in sharded_run.WITH_EVENTS
            expected = alone[method, events]
            results = [torch.load(folder / f"{kind}-{method}-{rank}.pt", weights_only=False) for rank in range(world)]
            for result in results:
                for key in ("placed", "labels"):
                    assert len(result[key]) == 16, (kind, method)
                    assert all(torch.equal(a, b) for a, b in zip(result[key], expected[key], strict=True)), (kind, key)
                if method == "cps-lora":  # of all batches; G-LoRA's is of the last, here of each process's last
                    assert result["held"] == pytest.approx(expected["held"], rel=1e-4)
            mean = [sum(losses) / world for losses in zip(*(result["losses"] for result in results), strict=True)]
            assert mean == pytest.approx(expected["losses"], abs=1e-5), (kind, method)
            assert len({result["losses"][0] for result in results}) == world  # each saw data of its own
            saved = PeftModel.from_pretrained(tiny_llama(), str(folder / f"{kind}-{method}")).eval()
            whole = PeftModel.from_pretrained(tiny_llama(), str(folder / f"alone-{events}" / f"plain-{method}")).eval()
            assert torch.allclose(logits(saved), logits(whole), atol=1e-4), (kind, method)
            assert (logits(saved) - logits(tiny_llama().eval())).abs().max() > 1e-2
            if events:
                moved = [result["event"]["rows_moved"] for result in results]
                assert moved == [expected["event"]["rows_moved"]] * world
            else:
                assert all("repartition=[]" in result["refused"] for result in results), results[0]["refused"]


def test_a_wrapper_is_refused_with_what_to_give_instead(tmp_path: Path) -> None:
    """DDP would wait for gradients that an observing pass does not make."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = sharded_run.unplaced("cps-lora", events=False)
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        with pytest.raises(CalibrationError, match=r"give the model that DistributedDataParallel wraps, model\.module"):
            calibrate(wrapped, sharded_run.to_calibrate(0))
    finally:
        torch.distributed.destroy_process_group()
