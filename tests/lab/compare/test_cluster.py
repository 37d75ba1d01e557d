"""Runs on a real Ray cluster of this machine: nodes killed, runs that fail, nodes that are not fit."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import localora
from localora.lab.compare.execute import execute
from localora.lab.compare.plan import Entry, Plan, PlanError, ResolvedPlan
from localora.lab.compare.runs import RunSpec, job_text, sweep_run
from localora.lab.compare.store import Store
from localora.lab.compare.workers import nodes as connection
from localora.lab.compare.workers.cluster import RETRIES, ClusterPool
from localora.lab.compare.workers.local import Done
from localora.lab.recipe.file import method_section
from patience import PATIENCE, wait_until

pytestmark = pytest.mark.slow

pytest.importorskip("ray", reason="Ray is not installed")

HEAD_CPUS = 1
# A node that is gone, and refuses each check, is noticed in two seconds; one that is merely slow is given minutes.
SYSTEM = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 60_000,
    "health_check_failure_threshold": 4,
    "worker_register_timeout_seconds": 300,
    "memory_monitor_refresh_ms": 0,  # another program that fills this machine's memory is not under test
}
LOOPBACK = "127.0.0.2"  # Ray puts the machine's own address in the place of 127.0.0.1


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """The head of a cluster of this test's own, on the loopback interface."""
    from ray.cluster_utils import Cluster

    # pytest's own folders are too long for the names of sockets
    folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
    with pytest.MonkeyPatch.context() as patch, folder as root:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("TMPDIR", root)  # of the nodes: those that are killed leave folders behind
        sessions = Path(root, "ray")
        sessions.mkdir()
        head = {"num_cpus": HEAD_CPUS, "include_dashboard": False, "node_ip_address": LOOPBACK}
        head |= {"temp_dir": str(sessions), "_system_config": SYSTEM}
        started = Cluster(initialize_head=True, head_node_args=head)
        yield started
        started.shutdown()


@pytest.fixture
def add_node(cluster: Any) -> Iterator[Callable[..., Any]]:
    """Starts nodes that are gone again after the test."""
    added = []

    def add(**arguments: Any) -> Any:
        added.append(cluster.add_node(node_ip_address=LOOPBACK, **arguments))
        return added[-1]

    yield add
    for node in added:
        cluster.remove_node(node)


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """No test waits for ever."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"the test took more than {2 * PATIENCE} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(int(2 * PATIENCE))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Scene:
    """A plan of 10 fake runs: two methods, each at three rates and then, at the best, with two seeds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "model"
        self.folder.mkdir()
        self.store = Store(folder / "results")
        self.order()
        self.resolved = self._resolve({"task": "arithmetic"})

    def _resolve(self, data: dict[str, Any]) -> ResolvedPlan:
        plan = Plan.model_validate(
            {
                "model": {"name": str(self.folder)},
                "tasks": {"sums": data},
                "methods": {"lora": None, "g-lora": None},
                "headroom": [],
                "learning_rates": {"grid": [1e-3, 2e-3, 4e-3], "seeds": [1000]},
                "seeds": [0, 1],
                "training": {"steps": 5},
            }
        )
        entries = [
            Entry(label=name, method=method_section({"name": name}), grid=[1e-3, 2e-3, 4e-3], trainable=9, budget=9)
            for name in plan.methods
        ]
        return ResolvedPlan(name="plan", plan=plan, entries=entries)

    def order(self, **orders: Any) -> None:
        (self.folder / "orders.json").write_text(json.dumps(orders), encoding="utf-8")

    def use_data(self, path: str) -> None:
        self.resolved = self._resolve({"path": path})

    def notes(self, **wanted: Any) -> list[dict[str, Any]]:
        """One for each start of a run so far."""
        found = [json.loads(path.read_text() or "{}") for path in sorted(self.folder.glob("notes/*.json"))]
        return [note for note in found if all(note.get(key) == value for key, value in wanted.items())]

    def spec(self, rate: float) -> RunSpec:
        return sweep_run(self.resolved, "sums", self.resolved.entries[0], rate, 1000)

    def pool(self, cluster: Any, **arguments: Any) -> ClusterPool:
        return ClusterPool(self.store, cluster.address, self.resolved.plan, module="fake_run", **arguments)

    def run_alone(self, pool: ClusterPool, rate: float) -> Done:
        pool.submit(self.spec(rate), job_text(self.spec(rate), None))
        while True:
            for done in pool.wait(1.0):
                return done


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.chdir(Path(__file__).parent)  # where a run's process starts, and finds fake_run
    return Scene(tmp_path)


@pytest.fixture
def surely_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves two seconds: no trial before the connection."""
    monkeypatch.setattr(connection, "_try", lambda address: None)


def raylet(node: Any) -> subprocess.Popen[bytes]:
    """The process that is a node's heart; what it started ends with it."""
    process: subprocess.Popen[bytes] = node.all_processes["raylet"][0].process
    return process


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_runs_of_a_killed_node_are_done_by_the_other(
    cluster: Any, add_node: Callable[..., Any], scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    heart = raylet(add_node(num_cpus=2))
    doomed = heart.pid
    scene.order(hang_on=doomed)

    def kill_midway() -> None:
        wait_until(lambda: len(scene.notes(raylet=doomed)) == 2, "two runs on the doomed node")
        heart.kill()
        heart.wait()

    pool = scene.pool(cluster)
    assert pool.slots == HEAD_CPUS + 2
    killer = threading.Thread(target=kill_midway)
    killer.start()
    state = execute(scene.resolved, scene.store, pool, Console(file=io.StringIO()))
    killer.join()

    assert len(state.finished) == 10
    assert (state.due, state.failed, state.diverged) == ([], [], [])
    lost = [note["run"] for note in scene.notes(raylet=doomed)]
    starts = Counter(note["run"] for note in scene.notes())
    assert len(lost) == 2
    assert starts == Counter(dict.fromkeys(starts, 1)) + Counter(lost)  # each once, and the lost ones once more
    assert caplog.text.count("was lost and is started again") == 2
    assert not any(alive(note["pid"]) for note in scene.notes(raylet=doomed))

    records = list(scene.store.folder.rglob("run.json"))
    assert len(records) == 10
    for record in records:
        folder = record.parent.parent
        assert {path.name for path in folder.iterdir()} == {"job.json", "log.txt", "run", "update.json"}
        assert {path.name for path in folder.glob("run/*")} == {"run.json", "adapter"}  # no checkpoints
        assert (folder / "run/adapter/weights.bin").read_bytes() == bytes(range(256)) * 1000


@pytest.mark.usefixtures("surely_there")
def test_a_run_that_fails_by_itself_is_not_started_again(cluster: Any, scene: Scene) -> None:
    scene.order(fail=1e-3)
    pool = scene.pool(cluster)
    try:
        done = scene.run_alone(pool, 1e-3)
    finally:
        pool.close()
    assert (done.spec, done.code) == (scene.spec(1e-3), 7)
    assert done.error.splitlines()[-2:] == ["the last words of a run", "(exit code 7)"]
    assert len(scene.notes()) == 1
    assert scene.store.read(done.spec).record is None


@pytest.mark.usefixtures("surely_there")
def test_a_run_that_loses_every_worker_is_given_up(cluster: Any, scene: Scene) -> None:
    scene.order(kill_worker=1e-3)
    pool = scene.pool(cluster)
    try:
        done = scene.run_alone(pool, 1e-3)
        after = scene.run_alone(pool, 2e-3)
    finally:
        pool.close()
    assert len(scene.notes(run="lora 0.001 1000")) == 1 + RETRIES
    assert done.code == 1
    assert done.error.startswith(f"lost by the cluster {1 + RETRIES} times: ")
    assert (after.code, scene.store.read(after.spec).status) == (0, "finished")


@pytest.mark.usefixtures("surely_there")
def test_closing_ends_what_runs_and_what_waits(cluster: Any, scene: Scene) -> None:
    scene.order(hang_on=raylet(cluster.head_node).pid)
    pool = scene.pool(cluster)
    for rate in (1e-3, 2e-3, 4e-3):
        pool.submit(scene.spec(rate), job_text(scene.spec(rate), None))
    wait_until(scene.notes, "a run that has started")
    (note,) = scene.notes()
    assert Path(note["folder"]).exists()
    pool.close()
    wait_until(lambda: not alive(note["pid"]), "the end of its process")
    wait_until(lambda: not Path(note["folder"]).exists(), "the end of its folder")
    assert len(scene.notes()) == 1  # those that waited for a free processor never started


@pytest.mark.usefixtures("surely_there")
def test_each_run_has_the_processors_it_asked_for(cluster: Any, add_node: Callable[..., Any], scene: Scene) -> None:
    add_node(num_cpus=4)
    pool = scene.pool(cluster, cpus=2)
    try:
        assert pool.slots == 2  # the head has no room for one
        scene.run_alone(pool, 1e-3)
    finally:
        pool.close()
    assert scene.notes()[0]["environment"] == {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.usefixtures("surely_there")
def test_resources_no_node_has_are_refused(cluster: Any, scene: Scene) -> None:
    with pytest.raises(PlanError, match=r"no node has room for a run of 1 CPU, 1 GPU: .* has 1 CPU, 0 GPU"):
        scene.pool(cluster, gpus=1)
    with pytest.raises(PlanError, match=r"whole GPUs or a part of one; got 1 CPU, 1\.5 GPU"):
        scene.pool(cluster, gpus=1.5)


@pytest.mark.usefixtures("surely_there")
def test_a_node_with_another_localora_runs_ours(
    cluster: Any, add_node: Callable[..., Any], scene: Scene, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "localora"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text('__version__ = "0.0.1"\n')
    add_node(num_cpus=2, env_vars={"PYTHONPATH": str(other.parent)})
    pool = scene.pool(cluster, cpus=2)  # for which the head has no room
    try:
        assert scene.run_alone(pool, 1e-3).code == 0
        (note,) = scene.notes()
        assert Path(note["localora"]).read_bytes() == Path(str(localora.__file__)).read_bytes()
        assert note["localora"] != str(localora.__file__)
    finally:
        pool.close()


@pytest.mark.usefixtures("surely_there")
def test_files_that_a_node_lacks_or_has_otherwise_are_named(
    cluster: Any, add_node: Callable[..., Any], scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for home, text in ((here, "1"), (there, "2")):
        home.mkdir()
        (home / "rows.jsonl").write_text(text)
    monkeypatch.setenv("HOME", str(here))
    scene.use_data("~/rows.jsonl")
    add_node(num_cpus=1, env_vars={"HOME": str(there)})
    with pytest.raises(PlanError, match="is not the same there") as error:
        scene.pool(cluster)
    assert str(there / "rows.jsonl") in str(error.value)
    (there / "rows.jsonl").unlink()
    with pytest.raises(PlanError, match=f"it has no {there / 'rows.jsonl'}, which the plan names"):
        scene.pool(cluster)


@pytest.mark.usefixtures("surely_there")
def test_a_node_that_joins_later_is_checked_too(cluster: Any, scene: Scene) -> None:
    """Its check is that of every run; here the files change under a node that was fit."""
    pool = scene.pool(cluster)
    try:
        scene.order(changed=True)
        with pytest.raises(PlanError, match=r"model is not the same there \(differs: orders.json\)"):
            scene.run_alone(pool, 1e-3)
    finally:
        pool.close()


def test_an_address_that_does_not_answer_is_an_error_in_bounded_time(
    scene: Scene,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "CONNECT_SECONDS", 4.0)
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(PlanError, match=rf"no Ray cluster at '{address}' \(no answer within 4 s\); give the"):
            ClusterPool(scene.store, address, scene.resolved.plan)
    with pytest.raises(PlanError, match=r"no Ray cluster at 'nonsense' \(.*Invalid address format: nonsense\)"):
        ClusterPool(scene.store, "nonsense", scene.resolved.plan)


def test_without_ray_the_extra_is_named(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PlanError, match=r"needs Ray: pip install 'localora\[ray\]'"):
        ClusterPool(scene.store, "auto", scene.resolved.plan)
