"""Published tasks of a plan: measured on each final run's adapter, item by item, and never on what was trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
import yaml

import published_files
from localora.lab.compare import run_one
from localora.lab.compare.budgets import resolve
from localora.lab.compare.comparison import compare_records
from localora.lab.compare.guards import check_data
from localora.lab.compare.measures import measures
from localora.lab.compare.plan import PlanError, Published, ResolvedPlan
from localora.lab.compare.plan_file import validate_plan
from localora.lab.compare.runs import Job, RunSpec, final_run, job_text, sweep_run
from localora.lab.compare.store import Store, Tasks, write_text
from localora.lab.compare.workers.nodes import local_names
from localora.lab.data.example import Example
from localora.lab.data.published.load import adapters_example
from localora.lab.data.published.registry import TASKS
from localora.lab.evaluation import tasks
from localora.lab.evaluation.tasks import evaluate_tasks, load_tasks
from localora.lab.model.adapted import load_adapted
from localora.lab.recipe.schema import with_folder
from localora.lab.training.record import Evaluation, Items
from planned import BEST, fill, plan_values, resolved_plan

NAMES = ["boolq", "arc_easy:llm-adapters"]
MIXTURE = [
    {"id": f"m{i}", "context": "", "question": f"Is {i} even?", "choices": ["false", "true"], "answer": (i + 1) % 2}
    for i in range(20)
] + [
    {"id": f"n{i}", "context": "", "question": f"Name {i}?", "choices": ["Ann", "Bob", "Cy"], "answer": i % 3}
    for i in range(20)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_files.write_tasks(tmp_path_factory.mktemp("data"))


def plan_of(model: Path | str, folder: Path, mixture: Path, **published: Any) -> ResolvedPlan:
    """Trained on a mixture of multiple-choice questions of two kinds."""
    return resolved_plan(
        model,
        tasks={"mixture": {"path": str(mixture), "validation_size": 6, "test_size": 4}},
        published={"tasks": NAMES, "data": str(folder), "examples": 2, "max_new_tokens": 4} | published,
    )


def train(spec: RunSpec, store: Store) -> None:
    """As the run's own process does."""
    job = Job.model_validate_json(job_text(spec))
    assert job.recipe == spec.recipe
    run_one.run(with_folder(job.recipe, store.path(spec) / "run"), None, job.published, keep_adapter=job.keep_adapter)


@pytest.fixture(scope="module")
def trained(model_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ResolvedPlan, Store]:
    """One final run of LoRA."""
    folder = tmp_path_factory.mktemp("comparison")
    resolved = plan_of(model_folder, data, published_files.write_rows(folder / "mixture.jsonl", MIXTURE))
    check_data(resolved)
    store = Store(folder)
    train(final(resolved), store)
    return resolved, store


def final(resolved: ResolvedPlan, label: str = "lora", seed: int = 0) -> RunSpec:
    return final_run(resolved, "mixture", resolved.entry(label), BEST, seed)


def test_each_published_task_is_scored_on_the_kept_adapter(
    trained: tuple[ResolvedPlan, Store], model_folder: Path, data: Path
) -> None:
    resolved, store = trained
    outcome = store.read(final(resolved))
    assert outcome.status == "finished"
    assert outcome.record is not None
    assert outcome.record.seconds["published"] > 0
    loaded = load_adapted(str(store.path(final(resolved)) / "run" / "adapter"), str(model_folder))
    expected = evaluate_tasks(
        loaded.model, loaded.tokenizer, load_tasks(NAMES, data, 2), batch_size=4, max_new_tokens=4
    )  # fmt: skip
    untrained = load_adapted(str(model_folder))
    before = evaluate_tasks(untrained.model, untrained.tokenizer, load_tasks(NAMES, data, 2), max_new_tokens=4)
    assert list(outcome.tasks) == ["boolq:likelihood", "arc_easy:llm-adapters"]
    for scores, wanted, base in zip(outcome.tasks.values(), expected, before, strict=True):
        assert (scores.right, scores.score, scores.score_name) == (wanted.right, wanted.value, wanted.metric)
        assert scores.loss == pytest.approx(wanted.reference_loss)
        assert scores.loss != pytest.approx(base.reference_loss, abs=1e-3)  # it is the trained model's
        assert scores.items is not None
        assert sum(scores.items.loss_sums) / sum(scores.items.tokens) == pytest.approx(scores.loss, abs=1e-6)


def test_they_are_measures_with_items_for_paired_tests(trained: tuple[ResolvedPlan, Store]) -> None:
    resolved, store = trained
    outcome = store.read(final(resolved))
    found = measures(outcome)["boolq:likelihood multiple choice accuracy"]
    boolq = outcome.tasks["boolq:likelihood"]
    assert found.items == tuple(map(float, boolq.right))
    assert (found.value, found.higher_is_better) == (boolq.score, True)
    loss = measures(outcome)["arc_easy:llm-adapters reference loss"]
    assert loss.items is not None
    assert loss.value == pytest.approx(mean(loss.items))


def test_a_run_that_was_killed_while_measuring_is_not_trained_again(
    trained: tuple[ResolvedPlan, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved, store = trained
    path = store.path(final(resolved)) / "tasks.json"
    before = Tasks.model_validate_json(path.read_text()).tasks
    path.unlink()
    assert Store(store.folder).read(final(resolved)).status == "missing"
    monkeypatch.setattr(run_one, "train", lambda *_, **__: pytest.fail("trained again"))
    train(final(resolved), store)
    again = Tasks.model_validate_json(path.read_text()).tasks
    assert {name: found.model_copy(update={"seconds": before[name].seconds}) for name, found in again.items()} == before
    assert Store(store.folder).read(final(resolved)).status == "finished"


def test_a_plan_that_asks_for_more_is_measured_anew_and_a_moved_folder_is_not(
    trained: tuple[ResolvedPlan, Store], model_folder: Path, data: Path, tmp_path: Path
) -> None:
    _, store = trained
    mixture = store.folder / "mixture.jsonl"

    def status(**published: Any) -> str:
        return Store(store.folder).read(final(plan_of(model_folder, data, mixture, **published))).status

    assert status() == "finished"
    assert status(data=str(tmp_path)) == "finished"
    assert status(examples=3) == "missing"
    assert status(tasks=["boolq"]) == "missing"
    without = final(plan_of(model_folder, data, mixture, tasks=[]))
    assert Store(store.folder).read(without).tasks == {}


def test_a_run_without_an_adapter_is_measured_before_its_model_goes(
    model_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the precision that its weights have after training, whatever that of the base model."""
    seen: list[torch.dtype] = []
    original = tasks.measure_task

    def noted(model: Any, *arguments: Any) -> tuple[Evaluation, list[str]]:
        seen.append(model.dtype)
        return original(model, *arguments)

    monkeypatch.setattr(tasks, "measure_task", noted)
    mixture = published_files.write_rows(tmp_path / "mixture.jsonl", MIXTURE)
    changes = {
        "methods": {"lora": None, "full": {"budget_label": "all weights"}},
        "model": {"name": str(model_folder), "dtype": "bfloat16"},
    }
    values = plan_of(model_folder, data, mixture).plan.model_dump(mode="json")
    resolved = resolve(validate_plan(values | changes), "tiny")
    store = Store(tmp_path / "results")
    train(final(resolved, "full"), store)
    outcome = store.read(final(resolved, "full"))
    assert outcome.status == "finished"
    assert [len(scores.items.ids) for scores in outcome.tasks.values() if scores.items] == [2, 2]
    assert not (store.path(final(resolved, "full")) / "run" / "model").exists()
    assert seen == [torch.float32] * 2


def test_a_cluster_node_needs_their_files(model_folder: Path, data: Path, tmp_path: Path) -> None:
    mixture = tmp_path / "mixture.jsonl"
    assert local_names(plan_of(model_folder, data, mixture).plan) == [str(model_folder), str(mixture), str(data)]
    assert local_names(plan_of(model_folder, data, mixture, tasks=[]).plan) == [str(model_folder), str(mixture)]
    plan = plan_of(model_folder, data, mixture, tasks=[]).plan
    watched = plan.model_copy(update={"watch": {"old": plan.tasks["mixture"].model_copy(update={"path": "old.jsonl"})}})
    assert local_names(watched) == [str(model_folder), str(mixture), "old.jsonl"]


def test_only_final_runs_measure_them(model_folder: Path, data: Path, tmp_path: Path) -> None:
    resolved = plan_of(model_folder, data, tmp_path / "mixture.jsonl")
    sweep = sweep_run(resolved, "mixture", resolved.entry("lora"), BEST, 1000)
    assert json.loads(job_text(sweep))["published"]["tasks"] == []
    assert json.loads(job_text(final(resolved)))["published"]["tasks"] == ["boolq:likelihood", NAMES[1]]


def scored(published: Published, right: Sequence[bool]) -> str:
    losses, count = [1.0 if answer else 1.1 for answer in right], len(right)
    found = Evaluation(
        loss=mean(losses),
        examples=count,
        score_name="multiple choice accuracy",
        score=mean(right),
        score_examples=count,
        right=list(right),
        items=Items(ids=[f"i{i}" for i in range(count)], loss_sums=losses, tokens=[1] * count),
    )
    return Tasks(measured=published, tasks={"boolq:likelihood": found}).model_dump_json()


def test_the_report_compares_them_item_by_item(data: Path, tmp_path: Path, model_folder: Path) -> None:
    resolved = plan_of(model_folder, data, tmp_path / "mixture.jsonl", tasks=["boolq"])
    store = Store(tmp_path / "results")
    fill(store, resolved, {"lora": [1.0, 1.1], "g-lora": [1.0, 1.1]})
    right = {"lora": [[True, False] * 10] * 2, "g-lora": [[True] * 14 + [False] * 6, [True] * 15 + [False] * 5]}
    for label, by_seed in right.items():
        for seed, answers in enumerate(by_seed):
            path = store.path(final(resolved, label, seed)) / "tasks.json"
            write_text(path, scored(resolved.plan.published, answers))
    tables = {table.measure: table for table in compare_records(store).tables}
    assert set(tables) == {
        "test loss", "boolq:likelihood multiple choice accuracy", "boolq:likelihood reference loss",
    }  # fmt: skip
    lines = {line.entry.label: line for line in tables["boolq:likelihood multiple choice accuracy"].lines}
    assert lines["lora"].values == (0.5, 0.5)
    assert lines["g-lora"].values == (0.7, 0.75)
    judged = lines["g-lora"].judged
    assert judged is not None
    assert len(lines["g-lora"].mcnemar) == 2


def test_training_on_a_published_test_row_is_refused(model_folder: Path, data: Path, tmp_path: Path) -> None:
    """Also in the other protocol's words, and as plain prompts and completions."""
    (loaded,) = load_tasks(["boolq"], data)

    def refused(rows: list[dict[str, Any]], held_out: str, **published: Any) -> None:
        resolved = plan_of(model_folder, data, published_files.write_rows(tmp_path / "m.jsonl", rows), **published)
        with pytest.raises(PlanError, match=rf"tasks.mixture: 1 prompt\(s\) .* test split of {held_out} \(b1\)"):
            check_data(resolved)

    def plain(example: Example) -> list[dict[str, Any]]:
        others = [{"prompt": f"Say {i}:", "completion": str(i)} for i in range(20)]
        return [*others, {"prompt": example.prompt, "completion": example.completion}]

    refused([*MIXTURE, published_files.BOOLQ[1]], "boolq:likelihood")
    refused(plain(loaded.examples[1]), "boolq:likelihood")
    adapters = adapters_example(TASKS["boolq"], loaded.examples[1])
    refused(plain(adapters), "boolq:llm-adapters", tasks=["boolq"])


def test_the_plan_in_the_documentation_is_valid() -> None:
    text = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (block,) = text.split("```yaml\n")[1:]
    plan = validate_plan(plan_values() | yaml.safe_load(block.split("```")[0]))
    assert len(plan.tasks["commonsense"].files["train"]) == 3
    assert len(plan.published.tasks) == 8 + 1 + 1


def test_what_is_wrong_with_published_tasks_is_said_before_any_run(
    model_folder: Path, data: Path, tmp_path: Path
) -> None:
    mixture = published_files.write_rows(tmp_path / "m.jsonl", MIXTURE)
    with pytest.raises(PlanError, match=r"published.tasks: no task is called 'bolq'; known: commonsense"):
        plan_of(model_folder, data, mixture, tasks=["bolq"])
    with pytest.raises(PlanError, match=r"published.exampels: unknown key; did you mean 'examples'\?"):
        plan_of(model_folder, data, mixture, exampels=3)
    with pytest.raises(PlanError, match=r"published.tasks: piqa has no test file in .*commonsense/piqa_test.jsonl"):
        check_data(plan_of(model_folder, data, mixture, tasks=["piqa"]))
    resolved = plan_of(model_folder, data, mixture, tasks=["code"])
    assert resolved.plan.published.tasks == ["humaneval:execution", "mbpp:execution"]
