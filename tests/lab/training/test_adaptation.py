"""Methods with something of their own before, during or after training: PiSSA, LoRA-GA, AdaLoRA, full fine-tuning."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraModel, AutoPeftModelForCausalLM, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import adapted_models
from localora.lab.compare.run_one import measure_update
from localora.lab.data.batches import Collator
from localora.lab.model import dtype as dtype_module
from localora.lab.recipe.file import method_section, validate_recipe
from localora.lab.recipe.schema import Recipe, RecipeError
from localora.lab.report.console import closing_lines
from localora.lab.run import train as run_module
from localora.lab.run.setup import load_setup
from localora.lab.run.train import train
from localora.lab.training.adaptation import adaptation_of
from localora.lab.training.adaptation.adalora import STATE
from localora.lab.training.folder import FolderError, RunFolder
from localora.lab.training.record import RunRecord
from localora.lab.training.trainer import TrainingError
from tiny_runs import OTHERS, recipe_values, stop_at

pytestmark = pytest.mark.slow

WEIGHTS = "adapter/adapter_model.safetensors"
LAYERS = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"]  # 32 x 32 and 32 x 64


def recipe(model: Path, out: Path, method: str, own: dict[str, Any] | None = None, **training: Any) -> Recipe:
    values = recipe_values(model, out, method, **training)
    values["method"] = values["method"] | (own or {})
    return validate_recipe(values)


def quiet() -> Console:
    return Console(file=io.StringIO())


def trained_logits(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """A list that receives the logits of the trained model, just before it is saved."""
    original, kept = run_module._Run.save, []

    def noted(run: Any) -> None:
        kept.append(adapted_models.logits(run.model.eval()))
        original(run)

    monkeypatch.setattr(run_module._Run, "save", noted)
    return kept


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")  # PEFT takes AdaLoRA's pattern for LoRA's
@pytest.mark.parametrize("method", OTHERS)
def test_what_is_saved_gives_the_logits_of_what_was_trained(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    kept = trained_logits(monkeypatch)
    rate = 0.1 if method == "adalora" else 1e-2  # its factors start so small that the others' rate hardly moves it
    record = train(recipe(model_folder, tmp_path / "run", method, learning_rate=rate), console=quiet())
    auto, folder = (AutoModelForCausalLM, "model") if method == "full" else (AutoPeftModelForCausalLM, "adapter")
    torch.manual_seed(1)  # nothing may depend on the random state of the process that loads
    loaded = auto.from_pretrained(tmp_path / "run" / folder).eval()
    logits = adapted_models.logits(loaded)
    torch.testing.assert_close(logits, kept[0], atol=1e-4, rtol=0)
    base = adapted_models.logits(AutoModelForCausalLM.from_pretrained(model_folder).eval())
    assert (logits - base).abs().max() > 0.1  # so far from the base model that a wrong start would show
    assert record.status == "finished"
    assert record.after is not None
    assert record.after.loss < record.before.loss - 0.1
    assert {p.name for p in (tmp_path / "run").iterdir()} == {".lock", "run.json", folder}
    assert f"{folder:<13}{tmp_path}/run/{folder}" in closing_lines(record, f"{tmp_path}/run")


@pytest.mark.parametrize("method", ["pissa", "lora-ga"])
def test_a_moved_base_is_saved_as_plain_lora_of_twice_the_rank(model_folder: Path, tmp_path: Path, method: str) -> None:
    chosen = recipe(model_folder, tmp_path / "run", method)
    record = train(chosen, console=quiet())
    config = PeftConfig.from_pretrained(str(tmp_path / "run" / "adapter"))
    assert (config.r, config.init_lora_weights) == (8, True)
    saved = load_file(tmp_path / "run" / WEIGHTS)
    assert (record.parameters.stored, record.parameters.rank) == (sum(t.numel() for t in saved.values()), 8)
    update = measure_update(RunFolder(tmp_path / "run"))
    assert update.layers == 2
    assert update.effective_rank is not None
    assert 1 < update.effective_rank < 8


def test_a_moved_base_without_its_start_is_not_resumed(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(model_folder, tmp_path / "run", "pissa")
    with monkeypatch.context() as patch:
        stop_at(patch, step=6)
        with pytest.raises(RuntimeError, match="plug pulled"):
            train(chosen, console=quiet())
    (tmp_path / "run" / "checkpoints" / "start" / "adapter_model.safetensors").unlink()
    with pytest.raises(FolderError, match=r"start/adapter_model.safetensors is missing.*--overwrite"):
        train(chosen, resume=True, console=quiet())


def test_lora_ga_starts_along_the_gradient_on_training_examples(model_folder: Path, tmp_path: Path) -> None:
    # 3 batches of 8 are all 24 training examples, so that the order does not matter
    chosen = recipe(model_folder, tmp_path, "lora-ga", {"calibration_steps": 3, "r": 2}, batch_size=8)

    def gradients(rows: str) -> dict[str, Tensor]:
        setup = load_setup(chosen)
        examples = getattr(setup, rows)
        for at in range(0, len(examples), 8):
            setup.model(**Collator(setup.pad_id)(examples[at : at + 8])).loss.backward()
        return {name: setup.model.get_submodule(name).weight.grad for name in LAYERS}

    setup = load_setup(chosen)
    weights = {name: setup.model.get_submodule(name).weight.detach().clone() for name in LAYERS}
    base = adapted_models.logits(setup.model.eval())
    model = adaptation_of(chosen, RunFolder(tmp_path)).attach(setup, resume=False)
    assert isinstance(model, PeftModel)
    torch.testing.assert_close(adapted_models.logits(model.eval()), base, atol=1e-4, rtol=0)
    training, test = gradients("train"), gradients("test")
    for name in LAYERS:
        layer = model.base_model.model.get_submodule(name)
        assert isinstance(layer, LoraLayer)
        A = layer.lora_A["default"].weight.detach()
        outside = {}
        for rows, gradient in (("train", training[name]), ("test", test[name])):
            V = torch.linalg.svd(gradient).Vh[:2]  # A starts as the two leading right singular vectors
            outside[rows] = ((A - A @ V.T @ V).norm() / A.norm()).item()
        assert outside["train"] < 1e-2 < 0.1 < outside["test"]
        moved = layer.get_base_layer().weight
        assert (moved - weights[name]).abs().max() > 1e-3
        torch.testing.assert_close(moved + layer.get_delta_weight("default"), weights[name], atol=1e-5, rtol=0)
    assert not any(p.grad is not None for p in model.parameters())


def test_lora_ga_finds_all_linear_layers_by_itself(model_folder: Path, tmp_path: Path) -> None:
    chosen = recipe(model_folder, tmp_path, "lora-ga", {"target_modules": "all-linear"})
    setup = load_setup(chosen)
    gate = setup.model.get_submodule("model.layers.0.mlp.gate_proj").weight.detach().clone()
    model = adaptation_of(chosen, RunFolder(tmp_path)).attach(setup, resume=False)
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert len(layers) == 7
    assert all(layer.lora_B["default"].weight.abs().max() > 0 for layer in layers)
    frozen = model.base_model.model.get_submodule("model.layers.0.mlp.gate_proj").get_base_layer().weight
    assert not torch.equal(frozen, gate)


def test_a_start_other_than_zero_cannot_go_with_rslora_and_ranks() -> None:
    for name in ("pissa", "lora-ga"):
        section = method_section({"name": name, "r": 4, "use_rslora": True, "ranks": {"q_proj": 2}})
        with pytest.raises(ValueError, match=f"{name}: cannot be saved with use_rslora and ranks together"):
            section.peft_config(seed=0, steps=200)


def test_adalora_ends_with_its_budget(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, steps = AdaLoraModel.update_and_allocate, []

    def noted(self: AdaLoraModel, global_step: int) -> None:
        original(self, global_step)
        E = [p for name, p in self.named_parameters() if "lora_E" in name]
        steps.append((global_step, sum(int(e.count_nonzero()) for e in E)))

    monkeypatch.setattr(AdaLoraModel, "update_and_allocate", noted)
    # Of 20 steps: 1 to 2 before, 10 the last allocation.
    record = train(recipe(model_folder, tmp_path / "run", "adalora", {"r": 6}, steps=20, warmup=0.0), console=quiet())
    # 2 layers of rank 6, falling with the cube of the time that is left to 2 layers of 4 on average
    falling = [8 + int(4 * (1 - (step - 2) / 8) ** 3) for step in range(3, 11)]
    assert steps == list(enumerate([12, 12, *falling, *[8] * 10], start=1))
    assert record.ranks is not None
    assert record.ranks.keys() == set(LAYERS)
    assert sum(record.ranks.values()) == 8
    saved = load_file(tmp_path / "run" / WEIGHTS)
    for name, rank in record.ranks.items():
        assert saved[f"base_model.model.{name}.lora_A"].shape[0] == rank
        assert saved[f"base_model.model.{name}.lora_E"].count_nonzero() == rank
    assert record.parameters.trainable == 6 * (32 + 32 + 1 + 32 + 64 + 1)
    kept = [tensor.numel() for name, tensor in saved.items() if "lora_" in name]
    assert (record.parameters.stored, record.parameters.rank) == (sum(kept), max(record.ranks.values()))


def test_adalora_whose_allocator_never_ran_is_an_error(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AdaLoraModel, "update_and_allocate", lambda self, global_step: None)
    with pytest.raises(TrainingError, match="was to end with 6 directions in all, and has all left"):
        train(recipe(model_folder, tmp_path / "run", "adalora"), console=quiet())
    assert RunRecord.read(tmp_path / "run" / "run.json").status == "failed"


def test_adalora_does_not_resume_without_its_scores(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(model_folder, tmp_path / "run", "adalora")
    with monkeypatch.context() as patch:
        stop_at(patch, step=6)
        with pytest.raises(RuntimeError, match="plug pulled"):
            train(chosen, console=quiet())
    (tmp_path / "run" / "checkpoints" / "checkpoint-4" / STATE).unlink()
    with pytest.raises(FolderError, match=r"checkpoint-4 cannot be resumed: adalora.safetensors is missing"):
        train(chosen, resume=True, console=quiet())


def test_adalora_learns_the_same_from_a_batch_in_two_parts(model_folder: Path, tmp_path: Path) -> None:
    whole = train(recipe(model_folder, tmp_path / "whole", "adalora", batch_size=4, steps=4), console=quiet())
    parts = train(
        recipe(model_folder, tmp_path / "parts", "adalora", batch_size=2, gradient_accumulation=2, steps=4),
        console=quiet(),
    )
    losses = ([point.loss for point in record.curve.train] for record in (whole, parts))
    assert next(losses) == pytest.approx(next(losses), abs=1e-4)
    assert whole.after is not None
    assert parts.after is not None
    assert parts.after.loss == pytest.approx(whole.after.loss, abs=1e-3)


@pytest.mark.parametrize(
    ("own", "steps", "message"),
    [
        ({"r": 1}, 100, r"starts with rank 1 and is to end with 1 on average.*raise r or init_r"),
        ({"r": 4, "target_r": 5}, 100, r"starts with rank 4 and is to end with 5"),
        ({"r": 4}, 1, r"1 steps leave none"),
    ],
)
def test_an_adalora_with_nothing_to_take_away_is_refused(own: dict[str, Any], steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method_section({"name": "adalora", **own}).peft_config(seed=0, steps=steps)


def test_adalora_has_the_scale_of_r_whatever_it_starts_with() -> None:
    config = method_section({"name": "adalora", "r": 8, "alpha": 12.0, "init_r": 12}).peft_config(seed=0, steps=200)
    assert (config.init_r, config.target_r, config.lora_alpha) == (12, 8, 18.0)  # PEFT scales by alpha / init_r
    with pytest.raises(RecipeError, match="use_rslora: should be False"):
        method_section({"name": "adalora", "use_rslora": True})


def test_full_fine_tuning_trains_every_weight_in_float32(model_folder: Path, tmp_path: Path) -> None:
    values = recipe_values(model_folder, tmp_path / "run", "full")
    values["model"]["dtype"] = "bfloat16"
    record = train(validate_recipe(values), console=quiet())
    before = AutoModelForCausalLM.from_pretrained(model_folder).state_dict()
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, weight in after.items():
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, before[name].bfloat16().float()), name
    assert record.parameters.trainable == record.parameters.base == sum(p.numel() for p in after.values())
    assert record.parameters.lora_same_r == 4 * (32 + 32 + 32 + 64)
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["dtype"] == "float32"
    AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert measure_update(RunFolder(tmp_path / "run")).effective_rank is None


def test_full_fine_tuning_starts_from_weights_that_were_not_rounded(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = recipe_values(model_folder, tmp_path / "run", "full")
    values["model"]["dtype"] = "auto"
    monkeypatch.setattr(dtype_module, "times_float32", lambda dtype: 0.1)  # an adapter's base would be in bfloat16
    setup = load_setup(validate_recipe(values))
    assert setup.model.dtype == torch.float32
    assert "every weight trains" in setup.dtype.reason


def test_full_fine_tuning_has_no_settings_of_adapters(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"alpha: no setting of full \(it belongs to lora,"):
        method_section({"name": "full", "alpha": 3})
    with pytest.raises(ValueError, match="full has no adapter"):
        method_section({"name": "full"}).peft_config(seed=0, steps=200)
    with pytest.raises(RecipeError, match=r"method: Target modules {'query'} not found"):
        train(recipe(model_folder, tmp_path / "run", "full", {"target_modules": ["query"]}), console=quiet())
    with pytest.raises(RecipeError, match="no layer is called query"):
        train(recipe(model_folder, tmp_path / "run", "full", {"target_modules": ["q_proj", "query"]}), console=quiet())
