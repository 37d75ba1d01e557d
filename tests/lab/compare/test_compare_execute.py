"""Running a plan: a process a run, nothing made twice, nothing lost to a crash, an interrupt or a kill."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from localora.cli import app
from localora.files import StorageError
from localora.lab.commands import compare as command
from localora.lab.compare.comparison import compare_records
from localora.lab.compare.execute import execute
from localora.lab.compare.plan import Plan, PlanError, ResolvedPlan
from localora.lab.compare.runs import sweep_run
from localora.lab.compare.schedule import Schedule
from localora.lab.compare.store import Store
from localora.lab.compare.workers.local import LocalPool
from localora.lab.training.folder import FolderError
from localora.lab.training.lock import locked
from patience import PATIENCE, heed_interrupts, wait_until
from planned import BEST, GRID, plan_values, resolved_plan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def resolved(model_folder: Path) -> ResolvedPlan:
    """One seed chooses the rates: these tests are of how runs are made, and half as many will do."""
    rates = plan_values()["learning_rates"] | {"seeds": [1000]}
    return resolved_plan(model_folder, learning_rates=rates)


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What quick runs do other than finish, for this test."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    chosen: dict[str, str] = {}

    class Acts(dict[str, str]):
        def __setitem__(self, key: str, value: str) -> None:
            chosen[key] = value
            monkeypatch.setenv("QUICK_RUN", json.dumps(chosen))

        def clear(self) -> None:
            chosen.clear()
            monkeypatch.delenv("QUICK_RUN")

    return Acts()


def run(resolved: ResolvedPlan, folder: Path, jobs: int = 2) -> tuple[Schedule, str]:
    """The state at the end, and what was printed."""
    store, out = Store(folder), io.StringIO()
    state = execute(resolved, store, LocalPool(store, jobs, module="quick_run"), Console(file=out, width=200))
    return state, out.getvalue()


def records(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Contents and time of every record."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("run.json")}


def test_all_runs_are_made_and_never_again(resolved: ResolvedPlan, tmp_path: Path, acts: dict[str, str]) -> None:
    state, said = run(resolved, tmp_path)
    assert (len(state.finished), state.due, state.failed, state.later) == (10, [], [], {})
    told = [line.split(": ")[0] for line in said.splitlines() if " loss " in line]
    assert sorted(told) == sorted(str(spec.folder) for spec in state.finished)  # a log tells of each run as it ends
    assert {label: choice.rate for (_, label), choice in state.choices.items()} == {"lora": BEST, "g-lora": BEST}
    made = records(tmp_path)
    assert len(made) == 10
    assert Store(tmp_path).load_plan() == resolved
    acts["lora 0.01"] = acts["g-lora 0.01"] = "crash"  # were it run again, it would be seen
    again, _ = run(resolved, tmp_path)
    assert again.finished == state.finished
    assert records(tmp_path) == made


def test_the_untrained_model_is_measured_once_for_all_final_runs(
    resolved: ResolvedPlan, tmp_path: Path, acts: dict[str, str]
) -> None:
    run(resolved, tmp_path, jobs=1)

    def job(label: str, name: str) -> Any:
        return json.loads((tmp_path / "sums" / label / name / "job.json").read_text())

    first, *others = (job(label, f"seed-{seed}-rate-0.01") for label in ("lora", "g-lora") for seed in (0, 1))
    assert first["before"] is None
    assert [other["before"]["seconds"] for other in others] == [7.5] * 3  # what the first one measured
    sweep = job("lora", "rate-0.01-steps-4-seed-1000")
    assert (sweep["before"], sweep["keep_adapter"], first["keep_adapter"]) == (None, False, True)


def test_a_crash_costs_one_run_and_is_tried_once_more(
    resolved: ResolvedPlan, tmp_path: Path, acts: dict[str, str]
) -> None:
    acts["lora 0.1"] = "crash"
    state, said = run(resolved, tmp_path)
    crashed = sweep_run(resolved, "sums", resolved.entry("lora"), 1e-1, 1000)
    assert state.failed == [crashed]
    assert state.due == [crashed]
    assert len(state.finished) == 2 + 5  # all of g-lora; of lora what does not wait for the crashed one
    assert "sums/lora/rate-0.1-steps-4-seed-1000: FAILED (try 1): about to crash" in said
    failure = json.loads((tmp_path / crashed.folder / "failure.json").read_text())
    assert failure == {"error": "about to crash\n(killed by signal 9)", "diverged": False, "attempts": 1}
    made = records(tmp_path)

    acts.clear()
    state, _ = run(resolved, tmp_path)
    assert (len(state.finished), state.failed) == (10, [])
    assert {path: seen for path, seen in records(tmp_path).items() if path in made} == made


@pytest.mark.usefixtures("acts")
def test_a_plan_that_shares_no_run_with_the_one_before_is_a_change_too(resolved: ResolvedPlan, tmp_path: Path) -> None:
    run(resolved, tmp_path)
    other = resolved.plan.model_copy(
        update={"learning_rates": resolved.plan.learning_rates.model_copy(update={"grid": [2e-3, 2e-2, 2e-1]})}
    )
    entries = [c.model_copy(update={"grid": [2e-3, 2e-2, 2e-1]}) for c in resolved.entries]
    run(resolved.model_copy(update={"plan": other, "entries": entries}), tmp_path)
    (change,) = Store(tmp_path).history()
    assert change.results == 4
    assert any("learning_rates" in line for line in change.changed)


def test_a_run_that_crashes_twice_is_given_up(resolved: ResolvedPlan, tmp_path: Path, acts: dict[str, str]) -> None:
    acts["lora 0.1"] = "nothing"
    _, said = run(resolved, tmp_path)
    assert "FAILED (try 1): ended without a finished record" in said
    assert "FAILED (try 2)" in run(resolved, tmp_path)[1]
    state, said = run(resolved, tmp_path)
    assert (len(state.failed), state.due) == (1, [])
    assert "FAILED" not in said


def test_a_diverged_run_is_a_result(resolved: ResolvedPlan, tmp_path: Path, acts: dict[str, str]) -> None:
    acts["lora 0.1"] = "diverge"
    state, said = run(resolved, tmp_path)
    assert "sums/lora/rate-0.1-steps-4-seed-1000: diverged: the loss became nan" in said
    assert [str(spec.folder) for spec in state.diverged] == ["sums/lora/rate-0.1-steps-4-seed-1000"]
    assert (len(state.finished), state.due, state.failed) == (9, [], [])
    assert (state.choices["sums", "lora"].rate, state.choices["sums", "lora"].at_edge) == (BEST, False)
    assert "diverged" not in run(resolved, tmp_path)[1]  # it is not made again


@pytest.mark.parametrize(("chosen", "threads"), [(None, 4), ("3", 3)])
def test_runs_share_the_cores(
    resolved: ResolvedPlan,
    tmp_path: Path,
    acts: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    chosen: str | None,
    threads: int,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)  # what a reader has chosen stays
    run(resolved, tmp_path, jobs=2)
    machines = [json.loads(path.read_text())["machine"] for path in tmp_path.rglob("run.json")]
    assert machines == [{"threads": threads}] * 10


def test_two_comparisons_in_one_folder_are_refused(
    resolved: ResolvedPlan, tmp_path: Path, acts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[LocalPool] = []
    monkeypatch.setattr(LocalPool, "close", lambda pool: closed.append(pool))
    with locked(tmp_path), pytest.raises(FolderError, match=rf"in use by another process \(process {os.getpid()} on"):
        run(resolved, tmp_path)
    assert len(closed) == 1  # it may be a connection to a cluster
    assert not (tmp_path / "plan.json").exists()
    assert len(run(resolved, tmp_path)[0].finished) == 10  # and the lock does not outlive its holder


@pytest.mark.parametrize(
    ("code", "target"),
    [(errno.ENOSPC, "plan.json"), (errno.ENOSPC, "job.json"), (errno.EROFS, "plan.json"), (errno.ENOSPC, "log.txt")],
)
def test_a_disk_that_is_full_or_read_only_is_named(
    resolved: ResolvedPlan,
    tmp_path: Path,
    acts: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    target: str,
) -> None:
    replace = Path.replace

    def refuses(path: Path, to: Path) -> Path:
        if to.name == target:
            raise OSError(code, os.strerror(code))
        return replace(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuses)
        with pytest.raises(StorageError, match=rf"cannot write .*{target}: {os.strerror(code)}; "):
            run(resolved, tmp_path)
    assert len(run(resolved, tmp_path)[0].finished) == 10


def test_a_folder_removed_during_the_runs_is_an_error_and_not_made_anew(
    resolved: ResolvedPlan, tmp_path: Path, acts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, wait, pools = tmp_path / "comparison", LocalPool.wait, []

    def removed(pool: LocalPool, seconds: float) -> Any:
        assert not pools, "the runs went on"  # to the one that hangs
        over = wait(pool, seconds)
        if over:
            pools.append(pool)
            shutil.rmtree(folder)
        return over

    monkeypatch.setattr(LocalPool, "wait", removed)
    acts["lora 0.1"] = "hang"
    with pytest.raises(FolderError, match="comparison was removed while it was being written into"):
        run(resolved, folder, jobs=1)
    assert len(pools) == 1
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_named(resolved: ResolvedPlan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot make the folder .*/file/comparison: "):
        run(resolved, tmp_path / "file" / "comparison")


def test_another_plan_does_not_replace_the_folders(
    resolved: ResolvedPlan, model_folder: Path, tmp_path: Path, acts: dict[str, str]
) -> None:
    run(resolved, tmp_path)
    rates = resolved.plan.learning_rates.model_dump()
    with pytest.raises(PlanError, match="finished under another plan"):
        run(resolved_plan(model_folder, training={"steps": 4, "batch_size": 3}, learning_rates=rates), tmp_path)
    assert Store(tmp_path).load_plan() == resolved


def write_plan(folder: Path, model: Path, **changes: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(plan_values(model, **changes)))
    return path


def compare(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "160"})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, acts: dict[str, str]) -> dict[str, str]:
    """The command, with quick runs."""
    monkeypatch.setattr(command, "LocalPool", partial(LocalPool, module="quick_run"))
    return acts


def test_a_dry_run_says_what_would_run_and_writes_nothing(model_folder: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, model_folder, headroom=[2])
    result = compare(plan, "--out", tmp_path / "out", "--dry-run", "--jobs", "2", "--set", "training.steps=7")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["lora", "0.001,", "0.01,", "0.1", "640", "100.0%", "0", "6", "2"] in lines
    assert ["lora-r8", "0.001,", "0.01,", "0.1", "1,280", "200.0%", "0", "6", "2"] in lines
    assert "steps   7 a run" in result.stdout
    assert "runs    0 done, 18 now, 6 later" in result.stdout
    assert "time    unknown until a run has finished" in result.stdout
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_what_the_run_would_refuse(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "same.jsonl"
    path.write_text("".join(f'{{"prompt": "Is {n} odd?", "completion": "no"}}\n' for n in (2, 4)))
    same = {"path": str(path), "validation_path": str(path), "test_path": str(path)}
    for changes, message in (
        ({"tasks": {"a": same}}, "have the prompt of a training example"),
        ({"methods": {"lora": None, "big": {"name": "lora", "r": 5}}}, "methods.big: trains 800 parameters"),
        ({"model": {"name": str(tmp_path / "no-model")}}, "no-model"),
        ({"training": {"stepz": 3}}, "training.stepz: unknown key; did you mean 'steps'?"),
    ):
        (tmp_path / "p.yaml").write_text(yaml.safe_dump(plan_values(model_folder) | changes))
        result = compare(tmp_path / "p.yaml", "--dry-run")
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("error: ")
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_the_command_from_plan_to_report(model_folder: Path, tmp_path: Path, quick: dict[str, str]) -> None:
    plan, out = write_plan(tmp_path, model_folder), tmp_path / "out"
    quick["lora 0.1"] = "crash"
    result = compare(plan, "--out", out, "--jobs", "2")
    assert result.exit_code == 1  # not all is done
    assert "FAILED (try 1)" in result.stdout
    assert "2 run(s) are still to be made" in result.stdout  # the seeds, which wait for it
    assert f"page: {out / 'index.html'}" in result.stdout

    quick.clear()
    dry = compare(plan, "--out", out, "--dry-run")
    assert "runs    12 done, 2 now, 2 later" in dry.stdout
    assert "time    about 44 s left, 1 run(s) at a time" in dry.stdout  # 10 s of training and 1 s of loading each
    result = compare(plan, "--out", out)
    assert result.exit_code == 0, result.output
    assert "against lora, of 1 comparisons: tie 1" in result.stdout
    assert "Headroom: not measured (no headroom in the plan)" in result.stdout

    page = (out / "index.html").read_bytes()
    for source in (out, plan):
        (out / "index.html").unlink()
        again = compare(source, *(() if source == out else ("--out", out)), "--report-only")
        assert again.exit_code == 0, again.output
        assert (out / "index.html").read_bytes() == page


def test_a_cluster_is_told_what_each_run_takes(
    model_folder: Path, tmp_path: Path, acts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def cluster(store: Store, address: str, plan: Plan, **resources: float) -> LocalPool:
        asked.append((address, plan.r, resources))
        return LocalPool(store, 2, module="quick_run")

    monkeypatch.setattr(command, "ClusterPool", cluster)
    plan = write_plan(tmp_path, model_folder)
    result = compare(plan, "--out", tmp_path / "out", "--cluster", "there:6379", "--cpus", "2", "--gpus", "0.5")
    assert result.exit_code == 0, result.output
    assert asked == [("there:6379", 4, {"cpus": 2.0, "gpus": 0.5})]
    assert len(records(tmp_path / "out")) == 16
    dry = compare(plan, "--out", tmp_path / "out", "--cluster", "there:6379", "--dry-run", "--set", "seeds=[0, 1, 2]")
    assert "about 22 s left, one run at a time; divide by how many the cluster has room for" in dry.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--jobs", "2", "--cluster", "auto"), "--jobs: a cluster runs as many at a time as it has room for"),
        (("--gpus", "1"), "--cpus, --gpus: say what each run takes of a cluster; give --cluster"),
    ],
)
def test_no_option_is_ignored(model_folder: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    result = compare(write_plan(tmp_path, model_folder), "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_folder_of_other_things_is_not_taken_over(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"is not empty and holds no comparison \(found .*--out"):
        Store(model_folder).check_folder()
    with pytest.raises(PlanError, match="cannot be the folder of a comparison"):
        Store(tmp_path / ("x" * 300)).check_folder()
    Store(tmp_path / "new").check_folder()


@pytest.mark.parametrize("text", [b"\xff", b"{", b"[" * 100_000, b"[]"])
def test_a_plan_json_that_is_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(text)
    with pytest.raises(PlanError, match=r"plan.json: is no (JSON|plan)"):
        Store(tmp_path).load_plan()


def test_report_only_needs_records(model_folder: Path, tmp_path: Path) -> None:
    result = compare(write_plan(tmp_path, model_folder), "--out", tmp_path / "out", "--report-only")
    assert result.exit_code == 2
    assert "holds no comparison (no plan.json)" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_runs_and_says_how_to_go_on(
    model_folder: Path, tmp_path: Path, quick: dict[str, str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    plan, out = write_plan(tmp_path, model_folder), tmp_path / "out"
    quick["lora 0.1"] = "hang"
    started: list[subprocess.Popen[bytes]] = []
    wait = LocalPool.wait
    heed_interrupts()

    def interrupted(pool: LocalPool, seconds: float) -> Any:
        started.extend(pool._running.values())
        if any(spec.rate == GRID[-1] for spec in pool._running):
            os.kill(os.getpid(), number)
        return wait(pool, seconds)

    monkeypatch.setattr(LocalPool, "wait", interrupted)
    result = compare(plan, "--out", out)
    assert result.exit_code == 128 + number
    assert "stopped; the same command continues where this one was" in result.stdout
    assert started
    assert all(process.poll() is not None for process in started)
    assert not list(out.rglob("failure.json"))  # nothing went wrong with the run that was stopped
    kept = records(out)
    assert len(kept) == 4

    quick.clear()
    monkeypatch.setattr(LocalPool, "wait", wait)
    assert compare(plan, "--out", out, "--jobs", "2").exit_code == 0
    assert {path: seen for path, seen in records(out).items() if path in kept} == kept
    assert len(records(out)) == 16


def test_a_killed_comparison_of_real_runs_continues(model_folder: Path, tmp_path: Path) -> None:
    grid = [GRID[1], 3 * GRID[1], 1e30]  # at the last one the loss stops being a number
    rates = {"grid": grid, "widen": 0, "validation_examples": 4}
    plan = write_plan(tmp_path, model_folder, methods={"lora": None}, learning_rates=rates)
    out = tmp_path / "out"
    code = "from localora.cli import app; app()"
    arguments = ["compare", str(plan), "--out", str(out), "--jobs", "2"]
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=log, stderr=log)

    def a_run_has_ended() -> bool:
        assert process.poll() is None, (tmp_path / "log.txt").read_text()
        return bool(list(out.rglob("update.json")))

    wait_until(a_run_has_ended, "the end of a run")
    runs = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(runs, timeout=PATIENCE)
    assert not alive  # they end with the comparison, and do not write behind the back of the next one
    kept = {path: seen for path, seen in records(out).items() if (path.parent.parent / "update.json").exists()}

    result = compare(plan, "--out", out, "--jobs", "2")
    assert result.exit_code == 0, result.output
    assert f"runs    {len(kept)} done" in result.stdout
    assert {path: seen for path, seen in records(out).items() if path in kept} == kept
    comparison = compare_records(Store(out))
    state = comparison.state
    assert [len(state.finished), len(state.diverged), len(state.due), len(state.failed)] == [6, 2, 0, 0]
    finals = [spec for spec in state.finished if spec.stage == "final"]
    assert [spec.seed for spec in finals] == [0, 1]
    (line,) = comparison.tables[0].lines
    assert line.values[0] != line.values[1]
    assert "sums/lora/rate-1e+30-steps-4-seed-1000: diverged, the loss stopped being a number" in result.stdout
    sweep = out / "sums" / "lora" / "rate-0.01-steps-4-seed-1000"
    assert not (sweep / "run" / "adapter").exists()  # only final ones are kept
    chosen = finals[0].rate
    assert (out / "sums" / "lora" / f"seed-0-rate-{chosen:g}" / "run" / "adapter").exists()
    update = json.loads((out / "sums" / "lora" / f"seed-0-rate-{chosen:g}" / "update.json").read_text())
    assert 1 <= update["stable_rank"] <= update["effective_rank"] <= 4  # of LoRA at r 4


def test_a_plan_json_with_a_budget_of_nothing_is_refused(resolved: ResolvedPlan, tmp_path: Path) -> None:
    values = resolved.model_dump(mode="json")
    values["entries"][0]["budget"] = 0
    (tmp_path / "plan.json").write_text(json.dumps(values))
    with pytest.raises(PlanError, match=r"is no plan of this version \(entries\.0\.budget: .* equal to 1"):
        Store(tmp_path).load_plan()
