"""A run on several processes of which one is killed, or was given something else: all end, and say which it was."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from localora.lab.training.record import RunRecord
from patience import PATIENCE, wait_until
from tiny_runs import recipe_values, write_recipe

pytestmark = pytest.mark.slow


def start(recipes: list[Path], *options: str) -> list[subprocess.Popen[str]]:
    """One `localora train` a recipe, joined as a launcher would join them, with nobody to look after them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(len(recipes)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "localora.cli", "train", str(recipe), *options],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=recipe.parent,
        )
        for rank, recipe in enumerate(recipes)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and standard error of each."""
    try:
        return [
            (process.returncode, error) for process in processes for _, error in [process.communicate(None, PATIENCE)]
        ]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize(("count", "victim"), [(2, 1), (4, 2), (4, 0)])
def test_a_killed_process_is_named_by_all_others(model_folder: Path, tmp_path: Path, count: int, victim: int) -> None:
    values = recipe_values(model_folder, tmp_path / "run", "cps-lora", steps=2000, batch_size=4, checkpoint_every=2)
    recipe = write_recipe(tmp_path / "recipe.yaml", values)
    processes = start([recipe] * count)
    wait_until(
        lambda: list((tmp_path / "run").glob("checkpoints/*/complete")) or any(p.poll() is not None for p in processes),
        "a checkpoint",
    )
    processes[victim].send_signal(signal.SIGKILL)
    results = ended(processes)
    assert results[victim][0] == -signal.SIGKILL
    for rank, (code, error) in enumerate(results):
        if rank != victim:
            assert code not in (0, -signal.SIGKILL)
            assert f"error: process {victim} (process id {processes[victim].pid} on " in error
            assert f"so process {rank} ends too" in error
            assert "Traceback" not in error
    if victim:
        record = RunRecord.read(tmp_path / "run" / "run.json")
        assert record.status == "failed"
        assert str(record.error).startswith(f"process {victim} (process id")


def test_what_torchrun_starts_names_the_killed_process_before_it_is_ended(model_folder: Path, tmp_path: Path) -> None:
    """The launcher notices too, and ends the others within moments."""
    values = recipe_values(model_folder, tmp_path / "run", "cps-lora", steps=2000, batch_size=6, checkpoint_every=2)
    recipe = write_recipe(tmp_path / "recipe.yaml", values)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m", "localora.cli", "train"]
    launcher = subprocess.Popen(
        [sys.executable, *command, str(recipe)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(
        lambda: list((tmp_path / "run").glob("checkpoints/*/complete")) or launcher.poll() is not None, "a checkpoint"
    )
    if launcher.poll() is not None:
        pytest.fail(launcher.communicate()[1])
    ranks = {p.environ()["RANK"]: p for p in psutil.Process(launcher.pid).children() if "RANK" in p.environ()}
    assert sorted(ranks) == ["0", "1", "2"]
    ranks["1"].kill()
    ((code, error),) = ended([launcher])
    assert code != 0
    assert error.count(f"process 1 (process id {ranks['1'].pid} on ") >= 2  # of process 0 and of process 2
    assert not any(rank.is_running() for rank in ranks.values())


def other_data(values: dict[str, Any]) -> dict[str, Any]:
    return values | {"data": values["data"] | {"seed": 5}}


def test_a_process_with_other_data_is_named_by_all(model_folder: Path, tmp_path: Path) -> None:
    values = recipe_values(model_folder, tmp_path / "run", "lora")
    recipes = [write_recipe(tmp_path / "own.yaml", values)] * 2
    recipes[1] = write_recipe(tmp_path / "other.yaml", other_data(values))
    for code, error in ended(start(recipes)):
        assert code == 2
        assert "error: process 1 has another recipe than process 0" in error


def test_other_contents_of_the_same_file_are_other_data(model_folder: Path, tmp_path: Path) -> None:
    values = recipe_values(model_folder, tmp_path / "run", "lora")
    values["data"] = {"path": "rows.jsonl", "validation_size": 4, "test_size": 4}
    recipes = []
    for rank in range(2):  # each in a folder of its own, as on two machines
        lines = [f'{{"prompt": "{i} and {rank if i == 7 else 0}?", "completion": "{i}"}}' for i in range(40)]
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "rows.jsonl").write_text("\n".join(lines))
        recipes.append(write_recipe(tmp_path / str(rank) / "recipe.yaml", values))
    for code, error in ended(start(recipes)):
        assert code == 2
        assert re.search(r"error: process 1 has another (train|validation|test) data than process 0", error)
