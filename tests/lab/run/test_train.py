"""A run from recipe to record, without the command line: what it measures, keeps, refuses, and continues."""

from __future__ import annotations

import io
import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from localora import export_lora
from localora.lab.data.batches import Collator
from localora.lab.data.example import item_id
from localora.lab.data.load import load_task
from localora.lab.data.split import subset
from localora.lab.evaluation.likelihood import mean_loss
from localora.lab.model import dtype as dtype_module
from localora.lab.recipe.file import validate_recipe
from localora.lab.recipe.schema import Recipe, RecipeError
from localora.lab.report.console import closing_lines, export_line
from localora.lab.run import train as run_module
from localora.lab.run import verification
from localora.lab.run.setup import Setup, load_setup
from localora.lab.run.train import train
from localora.lab.training.folder import FolderError
from localora.lab.training.record import RunRecord
from localora.lab.training.trainer import CheckedTrainer, TrainingError
from tiny_runs import METHODS, OTHERS, recipe_values, stop_at

pytestmark = pytest.mark.slow

ADAPTER = "adapter/adapter_model.safetensors"
RESULT = {"full": "model/model.safetensors"}  # of the others, ADAPTER


def recipe(model: Path, out: Path, method: str = "cps-lora", **training: Any) -> Recipe:
    return validate_recipe(recipe_values(model, out, method, **training))


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.mark.parametrize("method", METHODS)
def test_the_numbers_of_the_record_are_those_of_the_files(model_folder: Path, tmp_path: Path, method: str) -> None:
    chosen = recipe(model_folder, tmp_path / "run", method)
    record = train(chosen, console=quiet())
    setup = load_setup(chosen)
    assert record.before.loss == pytest.approx(setup.measure(setup.model).loss, abs=1e-6)
    reloaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "adapter")
    after = setup.measure(reloaded)
    assert record.after is not None
    assert record.after.loss == pytest.approx(after.loss, abs=1e-5)
    assert record.after.right == after.right
    items = record.after.items
    assert items is not None
    assert items.ids == [item_id(example) for example in setup.questions]
    assert sum(items.loss_sums) / sum(items.tokens) == pytest.approx(record.after.loss, abs=1e-6)
    assert items.tokens == [sum(label >= 0 for label in row["labels"][1:]) for row in setup.test]
    alone = [mean_loss(reloaded, [row], 1) for row in setup.test]
    assert [s / n for s, n in zip(items.loss_sums, items.tokens, strict=True)] == pytest.approx(alone, abs=1e-4)
    assert record.dtype == "float32"
    assert record.after.loss < record.before.loss - 0.1  # it learned
    saved = load_file(tmp_path / "run" / ADAPTER)
    kept = {key: t.numel() for key, t in saved.items() if t.is_floating_point()}
    assert record.parameters.trainable == sum(count for key, count in kept.items() if "frozen" not in key)
    if method != "lora":  # it has an event
        assert record.parameters.stored == sum(kept.values()) > record.parameters.trainable
    assert record.parameters.lora_same_r == 4 * (32 + 32) + 4 * (64 + 32)  # q_proj 32 x 32, down_proj 32 x 64
    for folder in () if method == "lora" else ("adapter", "lora"):
        card = (tmp_path / "run" / folder / "README.md").read_text()
        losses = f"loss {record.before.loss:.4f} before, {record.after.loss:.4f} after"
        assert f"| training | {losses}: nats per completion token, on 4 test examples |" in card
        assert "| training | data arithmetic, 24 examples |" in card
        assert f"| training | base model {model_folder.name} |" in card
        assert str(model_folder) not in card
    assert record.parameters.trainable == pytest.approx(record.parameters.lora_same_r, rel=0.005)
    assert record.parameters.base == sum(p.numel() for p in setup.model.parameters())
    assert record.data["hashes"] == load_task(chosen.data).hashes


def test_every_field_of_the_record_is_filled(model_folder: Path, tmp_path: Path) -> None:
    returned = train(recipe(model_folder, tmp_path / "run"), console=quiet())
    record = RunRecord.read(tmp_path / "run" / "run.json")
    assert record == returned
    assert (record.status, record.error, record.seed, record.method) == ("finished", None, 0, "cps-lora")
    assert [p.step for p in record.curve.train] == [1, 2, 3, 4, 5, 6]
    assert [p.step for p in record.curve.held_out] == [0, 2, 4, 6]
    assert record.curve.held_out[-1].loss < record.curve.held_out[0].loss
    assert record.seconds.keys() == {"load", "before", "attach", "calibrate", "train", "after", "save"}
    assert all(seconds > 0 for seconds in record.seconds.values())
    assert record.peak_memory_mib > 50
    assert record.before.score_name == "exact match"
    assert record.before.score_examples == len(record.before.right) == 4
    assert record.data["sizes"] == {"train": 24, "validation": 6, "test": 6}
    assert record.placement is not None
    assert len(record.placement["layers"]) == 2
    assert [event["step"] for event in record.repartitions] == [3]
    assert record.export is not None
    assert record.export["rank"] == record.parameters.rank == 16  # two clusters of rank 4, and as much from the event
    assert record.export["verified"]
    assert record.export["logit_error"] < 1e-5
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {".lock", "run.json", "adapter", "lora"}


def test_an_export_that_is_not_the_adapter_is_not_called_verified(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "export_lora", partial(export_lora, rank=1))
    record = train(recipe(model_folder, tmp_path / "run"), console=quiet())
    assert record.export is not None
    assert not record.export["verified"]
    assert record.export["delta_error"] > 0.01
    assert record.export["logit_error"] > 1e-4
    assert "NOT VERIFIED" in export_line(record.export)


def test_lora_as_a_placement_has_events_too(model_folder: Path, tmp_path: Path) -> None:
    """The rival of placements that are chosen anew: the chain of LoRAs, ReLoRA and COLA."""
    values = recipe_values(model_folder, tmp_path / "run")
    values["method"] = {
        "name": "g-lora", "global_share": 1.0, "r": 4, "target_modules": ["q_proj", "down_proj"],
        "repartition": [0.3, 0.6],
    }  # fmt: skip
    values["output"]["plots"] = True
    record = train(validate_recipe(values), console=quiet())
    assert [(event["step"], event["place"], event["frozen_rank"]) for event in record.repartitions] == [
        (2, "none", 4), (4, "none", 8),
    ]  # fmt: skip
    assert record.parameters.trainable == record.parameters.lora_same_r
    assert record.parameters.stored == 3 * record.parameters.trainable
    assert record.parameters.rank == 12
    assert record.export is not None
    assert record.export["verified"]
    assert not (tmp_path / "run" / "placement.png").exists()
    assert not any("placement.png" in line for line in closing_lines(record, str(tmp_path / "run")))


def test_plain_lora_needs_no_placement_and_no_export(model_folder: Path, tmp_path: Path) -> None:
    record = train(recipe(model_folder, tmp_path / "run", "lora"), console=quiet())
    assert record.placement is None
    assert record.export is None
    assert {p.name for p in (tmp_path / "run").iterdir()} == {".lock", "run.json", "adapter"}


def test_a_given_evaluation_is_not_measured_again(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    original = run_module._Run.measure

    def noted(run: Any, what: str) -> Any:
        measured.append(what)
        return original(run, what)

    monkeypatch.setattr(run_module._Run, "measure", noted)
    first = train(recipe(model_folder, tmp_path / "a", "lora"), console=quiet())
    assert measured.pop(0) == "measuring before"
    after = measured.copy()
    second = train(recipe(model_folder, tmp_path / "b", "g-lora"), before=first.before, console=quiet())
    assert second.before == first.before
    assert measured == 2 * after


def test_every_method_sees_the_same_batches_in_the_same_order(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[list[list[int]]]] = {}
    original = CheckedTrainer.training_step

    for method in [*METHODS, *OTHERS]:
        batches: list[list[list[int]]] = []

        def noted(
            self: CheckedTrainer, model: Any, inputs: Any, *args: Any, _to: Any = batches, **kwargs: Any
        ) -> Tensor:
            _to.append(inputs["input_ids"].tolist())
            return original(self, model, inputs, *args, **kwargs)

        monkeypatch.setattr(CheckedTrainer, "training_step", noted)
        train(recipe(model_folder, tmp_path / method, method, steps=4), console=quiet())
        seen[method] = batches
    assert len(seen["lora"]) == 4
    assert all(batches == seen["lora"] for batches in seen.values())


def test_auto_is_recorded_and_stays_what_it_was(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run keeps its dtype, also where the machine it goes on with multiplies another one faster."""
    values = recipe_values(model_folder, tmp_path / "run", "lora")
    values["model"]["dtype"] = "auto"
    values["training"] |= {"steps": 3, "checkpoint_every": 1}
    monkeypatch.setattr(dtype_module, "default_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(dtype_module, "times_float32", lambda dtype: 0.5)
    with monkeypatch.context() as plug:
        stop_at(plug, 2)
        with pytest.raises(RuntimeError, match="plug pulled"):
            train(validate_recipe(values), console=quiet())
    monkeypatch.setattr(dtype_module, "times_float32", lambda dtype: 20.0)
    record = train(validate_recipe(values), resume=True, console=quiet())
    assert (record.dtype, record.dtype_reason) == ("bfloat16", "cpu multiplies it faster than float32")
    assert record.recipe["model"]["dtype"] == "auto"
    assert record == RunRecord.read(tmp_path / "run" / "run.json")
    setup = load_setup(validate_recipe(values))
    assert (setup.model.dtype, setup.dtype.name) == (torch.float32, "float32")
    assert "takes 20.0 times" in setup.dtype.reason


def test_overwrite_leaves_nothing_of_the_old_run(model_folder: Path, tmp_path: Path) -> None:
    train(recipe(model_folder, tmp_path / "run", "cps-lora", steps=1), console=quiet())
    record = train(recipe(model_folder, tmp_path / "run", "lora", steps=1), overwrite=True, console=quiet())
    assert record.method == "lora"
    assert {p.name for p in (tmp_path / "run").iterdir()} == {".lock", "run.json", "adapter"}


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_loaded(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_run(*_: Any) -> None:
        pytest.fail("loaded before the folder was checked")

    monkeypatch.setattr(run_module, "load_setup", must_not_run)
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="cannot write to"):
        train(recipe(model_folder, tmp_path / "file" / "run"), console=quiet())


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_remedy(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CheckedTrainer.compute_loss

    def poisoned(self: CheckedTrainer, *args: Any, **kwargs: Any) -> Tensor:
        factor = math.nan if self.state.global_step == 2 else 1.0
        return original(self, *args, **kwargs) * factor

    monkeypatch.setattr(CheckedTrainer, "compute_loss", poisoned)
    with pytest.raises(TrainingError, match=r"became nan at step 3; lower training.learning_rate \(now 0.01\)"):
        train(recipe(model_folder, tmp_path / "run"), console=quiet())
    record = RunRecord.read(tmp_path / "run" / "run.json")
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.startswith("the loss became nan at step 3")


def test_a_model_whose_weights_are_no_numbers_is_found_before_training(model_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(math.nan)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"the loss on test examples is nan; .*model.dtype: float32"):
        train(recipe(broken, tmp_path / "run"), console=quiet())
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_held_out_loss_that_is_no_number_stops_the_run(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Setup, "held_out_loss", lambda *_: math.inf)
    with pytest.raises(TrainingError, match="on held-out examples at step 0 is inf"):
        train(recipe(model_folder, tmp_path / "run"), console=quiet())
    assert RunRecord.read(tmp_path / "run" / "run.json").status == "failed"


def test_target_modules_that_are_not_there_are_an_error_of_the_recipe(model_folder: Path, tmp_path: Path) -> None:
    values = recipe_values(model_folder, tmp_path / "run")
    values["method"] = values["method"] | {"target_modules": ["query"]}
    with pytest.raises(RecipeError, match=r"method: .*query.* not found"):
        train(validate_recipe(values), console=quiet())


def test_a_rank_that_layers_cannot_hold_is_told_once(model_folder: Path, tmp_path: Path) -> None:
    values = recipe_values(model_folder, tmp_path / "run", "g-lora", steps=1)
    values["method"] = values["method"] | {"r": 128}
    with pytest.warns(UserWarning, match="2 of 2 layers cannot hold what was asked for"):
        record = train(validate_recipe(values), console=quiet())
    assert record.parameters.trainable == record.parameters.lora_same_r


def test_the_same_recipe_gives_the_same_weights_whatever_happened_before(model_folder: Path, tmp_path: Path) -> None:
    for noise in (1, 2):
        torch.manual_seed(noise)
        train(recipe(model_folder, tmp_path / str(noise), "lora", steps=2), console=quiet())
    first, second = load_file(tmp_path / "1" / ADAPTER), load_file(tmp_path / "2" / ADAPTER)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_each_split_is_used_for_its_own_purpose(model_folder: Path, tmp_path: Path) -> None:
    setup = load_setup(recipe(model_folder, tmp_path / "run"))
    for rows, examples in (
        (setup.train, setup.task.train),
        (setup.validation, subset(setup.task.validation, 4, 0)),
        (setup.test, subset(setup.task.test, 4, 0)),
        (setup.test, setup.questions),
    ):
        texts = [setup.tokenizer.decode(row["input_ids"]) for row in rows]
        assert texts == [e.prompt + e.completion + setup.tokenizer.eos_token for e in examples]
    assert setup.measure(setup.model).loss == pytest.approx(mean_loss(setup.model, setup.test, 4))
    assert setup.held_out_loss(setup.model) == pytest.approx(mean_loss(setup.model, setup.validation, 4))


def test_every_file_of_a_split_has_its_share_of_the_questions(model_folder: Path, tmp_path: Path) -> None:
    names = ("first", "second", "third")
    for name in names:
        rows = [{"prompt": f"{name} {i}: ", "completion": f"{i}"} for i in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = recipe_values(model_folder, tmp_path / "run", "lora")
    files = [str(tmp_path / f"{name}.jsonl") for name in names]
    values["data"] = {"path": files, "validation_size": 60, "test_size": 60}
    values["evaluation"] = {"examples": 24, "curve_examples": 24}
    setup = load_setup(validate_recipe(values))
    for rows in (setup.test, setup.validation):
        texts = [setup.tokenizer.decode(row["input_ids"]) for row in rows]
        shares = [sum(name in text for text in texts) for name in names]
        assert sum(shares) == 24
        assert min(shares) >= 4, shares  # the first 24 of 60 would be of the first file and a few of the second


def test_the_prompt_carries_no_loss(model_folder: Path, tmp_path: Path) -> None:
    setup = load_setup(recipe(model_folder, tmp_path / "run"))
    example, encoded = setup.task.train[0], setup.train[0]
    labelled = [token for token in encoded["labels"] if token != -100]
    assert setup.tokenizer.decode(labelled) == example.completion + setup.tokenizer.eos_token
    assert Collator(1)([encoded])["labels"].tolist() == [encoded["labels"]]
