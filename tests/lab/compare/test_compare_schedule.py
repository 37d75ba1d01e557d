"""What is left to run, read off a folder of records; what the folder refuses; how long the rest will take."""

from __future__ import annotations

from pathlib import Path

import pytest

from localora.lab.compare.plan import PlanError, ResolvedPlan
from localora.lab.compare.runs import RunSpec, final_run, sweep_run, sweep_runs
from localora.lab.compare.schedule import schedule, seconds_left, seconds_of
from localora.lab.compare.store import MAX_ATTEMPTS, Store
from localora.lab.progress import duration_text
from localora.lab.training.record import RecordError
from planned import BEST, GRID, fill, leave, plan_values, record_of, resolved_plan


@pytest.fixture(scope="module")
def resolved(model_folder: Path) -> ResolvedPlan:
    return resolved_plan(model_folder)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def sweeps(resolved: ResolvedPlan, label: str) -> list[RunSpec]:
    return [spec for rate in GRID for spec in sweep_runs(resolved, "sums", resolved.entry(label), rate)]


def test_at_first_all_sweeps_are_due_and_the_rest_is_foreseen(resolved: ResolvedPlan, store: Store) -> None:
    state = schedule(resolved, store.read)
    assert state.due == [*sweeps(resolved, "lora"), *sweeps(resolved, "g-lora")]
    assert state.later == {("sums", "lora"): 2, ("sums", "g-lora"): 2}  # the final seeds
    assert state.total == 16


def test_a_chosen_rate_makes_the_final_runs_of_that_method_due(resolved: ResolvedPlan, store: Store) -> None:
    for spec in sweeps(resolved, "lora"):
        leave(store, spec, record_of(spec, validation=1.0 if spec.rate == BEST else 1.5))
    state = schedule(resolved, store.read)
    lora = resolved.entry("lora")
    assert state.choices["sums", "lora"].rate == BEST
    finals = [final_run(resolved, "sums", lora, BEST, seed) for seed in (0, 1)]
    assert state.due == [*finals, *sweeps(resolved, "g-lora")]
    assert [str(spec.folder) for spec in finals] == ["sums/lora/seed-0-rate-0.01", "sums/lora/seed-1-rate-0.01"]
    assert state.total == 16


def test_a_best_at_the_edge_adds_a_run(resolved: ResolvedPlan, store: Store) -> None:
    for spec in sweeps(resolved, "lora"):
        leave(store, spec, record_of(spec, validation=spec.rate))
    state = schedule(resolved, store.read)
    assert [spec.rate for spec in state.due if spec.label == "lora"] == [1e-4, 1e-4]


def test_a_failed_run_is_due_once_more_and_a_diverged_one_is_a_result(resolved: ResolvedPlan, store: Store) -> None:
    crashed, *_, diverged = sweeps(resolved, "lora")
    store.fail(crashed, "killed", diverged=False)
    store.fail(diverged, "nan", diverged=True)
    state = schedule(resolved, store.read)
    assert (state.failed, state.diverged) == ([crashed], [diverged])
    assert crashed in state.due
    assert diverged not in state.due
    assert state.total == 16
    assert store.fail(crashed, "killed", diverged=False).attempts == MAX_ATTEMPTS
    assert crashed not in schedule(resolved, store.read).due
    leave(store, crashed, record_of(crashed, 1.0))  # a record goes before an earlier failure
    assert crashed in schedule(resolved, store.read).finished


def test_a_run_is_over_when_its_update_is_measured(resolved: ResolvedPlan, store: Store) -> None:
    spec = sweeps(resolved, "lora")[0]
    leave(store, spec, record_of(spec, 1.0))
    (store.path(spec) / "update.json").unlink()
    assert store.read(spec).status == "missing"
    leave(store, spec, record_of(spec, 1.0))
    assert store.read(spec).status == "finished"


def test_a_run_that_still_goes_on_is_not_finished(resolved: ResolvedPlan, store: Store) -> None:
    spec = sweeps(resolved, "lora")[0]
    leave(store, spec, record_of(spec, 1.0).model_copy(update={"status": "running", "after": None}))
    assert store.read(spec).status == "missing"


def test_records_of_another_plan_are_refused(resolved: ResolvedPlan, model_folder: Path, store: Store) -> None:
    spec = sweeps(resolved, "g-lora")[0]
    leave(store, spec, record_of(spec, 1.0))
    other = resolved_plan(model_folder, training={"steps": 4, "batch_size": 3})
    with pytest.raises(PlanError) as caught:
        schedule(other, store.read)
    (problem,) = caught.value.problems
    assert "finished under another plan (training.batch_size was 2, is 3)" in problem
    assert "(--out)" in problem
    assert str(store.path(spec)) in str(caught.value)


def test_more_seeds_and_methods_keep_what_is_there(resolved: ResolvedPlan, model_folder: Path, store: Store) -> None:
    fill(store, resolved, {"lora": [1.0, 1.1], "g-lora": [1.0, 1.1]})
    methods = {**plan_values()["methods"], "rslora": None}
    state = schedule(resolved_plan(model_folder, seeds=[0, 1, 2], methods=methods), store.read)
    assert len(state.finished) == 16
    due = [(spec.label, spec.seed) for spec in state.due]
    assert due == [("lora", 2), ("g-lora", 2), *[("rslora", 1000), ("rslora", 1001)] * 3]


def test_damaged_files_are_named(resolved: ResolvedPlan, store: Store) -> None:
    spec = sweeps(resolved, "lora")[0]
    path = leave(store, spec, record_of(spec, 1.0))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RecordError, match=r"run\.json is no run record"):
        schedule(resolved, store.read)
    leave(store, spec, record_of(spec, 1.0))
    (store.path(spec) / "update.json").write_text('{"effective_rank": "many"}')
    with pytest.raises(PlanError, match=r"update\.json: cannot be read"):
        schedule(resolved, store.read)


def test_a_folder_without_a_plan_or_with_an_old_one(resolved: ResolvedPlan, store: Store) -> None:
    with pytest.raises(PlanError, match="holds no comparison"):
        store.load_plan()
    store.save_plan(resolved)
    assert store.load_plan() == resolved
    path = store.folder / "plan.json"
    path.write_text(path.read_text().replace('"entries"', '"methods"'))
    with pytest.raises(PlanError, match="is no plan of this version"):
        store.load_plan()


def test_the_estimate_prefers_the_method_itself(resolved: ResolvedPlan) -> None:
    lora, ours = (sweep_run(resolved, "sums", c, BEST, 1000) for c in resolved.entries)
    last = final_run(resolved, "sums", resolved.entries[1], BEST, 0)

    def taking(spec: RunSpec, train: float, after: float) -> tuple[RunSpec, object]:
        seconds = {"load": 1.0, "before": 2.0, "train": train, "calibrate": 3.0, "after": after, "save": 0.5}
        return spec, record_of(spec, 1.0).model_copy(update={"seconds": seconds})

    finished = [taking(lora, 4.0, 1.0), taking(ours, 8.0, 1.0), taking(last, 8.0, 21.0)]
    assert seconds_of("sums", "lora", "sweep", finished) == pytest.approx(4.0 + 4.5)
    assert seconds_of("sums", "g-lora", "sweep", finished) == pytest.approx(8.0 + 4.5)
    assert seconds_of("sums", "g-lora", "final", finished) == pytest.approx(8.0 + 24.5)
    # A method that never ran: the mean of those that did.
    assert seconds_of("sums", "dora", "final", finished) == pytest.approx((4 + 8 + 8) / 3 + 24.5)
    assert seconds_of("sums", "lora", "sweep", []) is None


def test_seconds_left_counts_what_is_due_and_what_is_foreseen(resolved: ResolvedPlan, store: Store) -> None:
    assert seconds_left(schedule(resolved, store.read), store.read) is None
    for spec in sweeps(resolved, "lora"):
        leave(store, spec, record_of(spec, validation=1.0 if spec.rate == BEST else 1.5))
    state = schedule(resolved, store.read)
    each = 10.0 + 1.0 + 2.0 + 2.5 + 3.0 + 0.5  # calibration is part of training
    # 2 finals of lora and 6 sweeps of g-lora are due, 2 finals of g-lora come later
    assert seconds_left(state, store.read) == pytest.approx(10 * each)
    assert seconds_left(state, store.read, slots=2) == pytest.approx(10 * each / 2)
    fill(store, resolved, {"lora": [1.0, 1.1], "g-lora": [1.0, 1.1]})
    assert seconds_left(schedule(resolved, store.read), store.read) == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "?"), (11.6, "12 s"), (200, "3 min 20 s"), (3600, "1 h 00 min"), (7530, "2 h 05 min")]
)
def test_times_are_spelt(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_rate_is_chosen_by_the_mean_over_the_seeds(resolved: ResolvedPlan, store: Store) -> None:
    losses = {(1e-3, 1000): 1.0, (1e-3, 1001): 1.6, (1e-2, 1000): 1.2, (1e-2, 1001): 1.2}
    for spec in sweeps(resolved, "lora"):
        leave(store, spec, record_of(spec, validation=losses.get((spec.rate, spec.seed), 1.5)))
    choice = schedule(resolved, store.read).choices["sums", "lora"]
    assert choice.rate == 1e-2  # the first seed alone would have 1e-3
    assert choice.tried == pytest.approx({1e-3: 1.3, 1e-2: 1.2, 1e-1: 1.5})


def test_a_rate_at_which_one_seed_diverged_is_passed_over(resolved: ResolvedPlan, store: Store) -> None:
    for spec in sweeps(resolved, "lora"):
        if (spec.rate, spec.seed) == (1e-2, 1001):
            store.fail(spec, "nan", diverged=True)
        else:
            leave(store, spec, record_of(spec, validation={1e-3: 1.4, 1e-2: 1.0, 1e-1: 1.5}[spec.rate]))
    state = schedule(resolved, store.read)
    assert state.choices == {} or state.choices["sums", "lora"].rate != 1e-2


def test_a_loss_that_is_no_number_is_a_diverged_run_and_an_empty_curve_is_named(
    resolved: ResolvedPlan, store: Store
) -> None:
    spec, other, *_ = sweeps(resolved, "lora")
    path = leave(store, spec, record_of(spec, 1.0))
    path.write_text(path.read_text().replace('"loss": 1.0', '"loss": NaN'))
    assert store.read(spec).status == "diverged"
    record = record_of(other, 1.0)
    record.curve.held_out = []
    leave(store, other, record)
    with pytest.raises(PlanError, match=r"has no validation loss; remove the folder"):
        store.read(other)


def test_a_plan_without_a_budget_is_refused(resolved: ResolvedPlan, store: Store) -> None:
    store.save_plan(resolved)
    path = store.folder / "plan.json"
    path.write_text(path.read_text().replace(f'"budget": {resolved.entries[0].budget}', '"budget": 0'))
    with pytest.raises(PlanError, match=r"entries\.0\.budget: Input should be greater than or equal to 1"):
        store.load_plan()


def test_changes_of_the_plan_are_kept_once_there_are_results(
    resolved: ResolvedPlan, model_folder: Path, store: Store
) -> None:
    store.save_plan(resolved)
    more = resolved_plan(model_folder, methods={**plan_values()["methods"], "rslora": None}, seeds=[0, 1, 2])
    store.save_plan(more, results=0)
    assert store.history() == []
    store.save_plan(resolved, results=5)
    store.save_plan(resolved, results=5)
    (change,) = store.history()
    assert change.results == 5
    assert change.changed == ["methods.rslora was taken out", "seeds was [0, 1, 2], is [0, 1]"]
    fill(store, resolved, {"lora": [1.0, 1.1], "g-lora": [1.0, 1.1]})
    assert store.finished_finals() == 4
