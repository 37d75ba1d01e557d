"""What would corrupt a model, or place an adapter on nothing, is refused or told of before anything has changed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainingArguments

import localora
from adapted_models import logits
from localora.adapter.adapter_file import read_adapter
from localora.arguments import ArgumentError
from localora.errors import LocaloraError
from localora.lab.cost import predict_cost
from localora.lab.inspect.microscope import inspect_delta
from localora.lab.model import ModelError
from localora.lab.recipe.file import parse_yaml
from localora.lab.recipe.schema import RecipeError
from tiny_models import tiny_llama, token_batch


def placed(**options: Any) -> PeftModel:
    config = localora.CpsLoraConfig(
        r=4, clusters=2, placement="random", init_weights=False, target_modules=["q_proj", "v_proj"], **options
    )
    return get_peft_model(tiny_llama(), config)  # type: ignore[arg-type]


def base_of(model: PeftModel) -> Tensor:
    with model.disable_adapter():
        return logits(model)


def test_a_merged_adapter_is_not_placed_anew() -> None:
    model = placed().eval()
    model.merge_adapter()
    with pytest.raises(localora.CalibrationError, match=r"merged into the base weights.*unmerge_adapter"):
        localora.calibrate(model, [token_batch(1)], replace=True)
    model.unmerge_adapter()
    torch.testing.assert_close(base_of(model), logits(tiny_llama().eval()), rtol=1e-4, atol=1e-4)


def test_a_merged_adapter_is_not_swapped(tmp_path: Path) -> None:
    placed().save_pretrained(str(tmp_path))
    model = placed().eval()
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"merged into the base weights.*unmerge_adapter"):
        localora.hot_swap(model, tmp_path)
    model.unmerge_adapter()
    torch.testing.assert_close(base_of(model), logits(tiny_llama().eval()), rtol=1e-4, atol=1e-4)


def test_an_optimizer_without_state_is_refused_before_training() -> None:
    class Wrapper:
        def __init__(self, parameters: list[Tensor]) -> None:
            self.param_groups = [{"params": parameters, "lr": 0.1}]

    model = placed(repartition_every=1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with pytest.raises(localora.ScheduleError, match="Wrapper has no param_groups and state"):
        localora.Repartitioner(model, Wrapper(parameters), 3, [token_batch(0)])
    with pytest.raises(localora.ScheduleError, match="no batches"):
        localora.Repartitioner(model, torch.optim.SGD(parameters), 3, [])


@pytest.mark.parametrize("config", [localora.CpsLoraConfig, localora.GLoraConfig])
def test_gradients_that_are_zero_are_told_of(config: Any) -> None:
    def second_block_only(model: PeftModel, batch: dict[str, Tensor]) -> Tensor:
        """The first block's output is cut off from the loss, though the graph reaches it."""
        first = model.get_base_model().model.layers[0]
        handle = first.register_forward_hook(lambda _, __, output: output * 0 + output.detach())
        try:
            return model(**batch).loss
        finally:
            handle.remove()

    def unplaced() -> PeftModel:
        return get_peft_model(tiny_llama(), config(r=4, target_modules=["q_proj"]))  # type: ignore[arg-type]

    with pytest.warns(UserWarning, match=r"gradient is zero in 1 of 2 adapted layers, .*layers\.0.*q_proj among them"):
        localora.calibrate(unplaced(), [token_batch(0)], loss_fn=second_block_only)
    with pytest.raises(localora.CalibrationError, match="gradient is zero on every adapted layer"):
        localora.calibrate(unplaced(), [token_batch(0)], loss_fn=lambda model, batch: model(**batch).loss * 0)


def test_calibration_without_gradients_says_so() -> None:
    model = get_peft_model(tiny_llama(), localora.CpsLoraConfig(r=2, clusters=2, target_modules=["q_proj"]))
    with torch.inference_mode(), pytest.raises(localora.CalibrationError, match="inference_mode forbids"):
        localora.calibrate(model, [token_batch(0)])
    with torch.no_grad():
        assert localora.calibrate(model, [token_batch(0)]).layers


def test_one_batch_in_place_of_several_is_refused() -> None:
    model = get_peft_model(tiny_llama(), localora.CpsLoraConfig(r=2, clusters=2, target_modules=["q_proj"]))
    with pytest.raises(ArgumentError, match=r"pass a list: \[batch\]"):
        localora.calibrate(model, token_batch(0))


def test_labels_unplaced_on_one_side_only_are_refused(tmp_path: Path) -> None:
    placed().save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({k: t.fill_(-2) if k.endswith("row_labels") else t for k, t in tensors.items()}, path)
    with pytest.raises(ValueError, match="label"):
        PeftModel.from_pretrained(tiny_llama(), str(tmp_path))


def test_a_module_to_save_that_the_file_lacks_is_named(tmp_path: Path) -> None:
    placed(modules_to_save=["lm_head"]).save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_model.safetensors"
    save_file({k: t for k, t in load_file(path).items() if "lm_head" not in k}, path)
    with pytest.raises(ValueError, match="'lm_head', which its config's modules_to_save names"):
        read_adapter(tmp_path)
    with pytest.raises((ValueError, KeyError), match="lm_head"):
        PeftModel.from_pretrained(tiny_llama(), str(tmp_path))


def test_an_unloaded_adapter_has_nothing_to_export(tmp_path: Path) -> None:
    model = placed()
    model.unload()
    with pytest.raises(ValueError, match="no layer of this model holds a localora adapter"):
        localora.export_lora(model, tmp_path / "out")
    with pytest.raises(ValueError, match="modelfile is empty"):
        localora.export_lora(placed(), tmp_path / "out", modelfile=" ")


@pytest.mark.parametrize("config", [localora.CpsLoraConfig, localora.GLoraConfig])
def test_the_cost_of_an_adapter_that_waits_for_its_placement_is_predicted(config: Any) -> None:
    predicted = predict_cost("smollm2-135m", config(r=8, target_modules="all-linear"))
    assert predicted.trainable == predicted.lora_trainable


def test_a_callback_with_nothing_to_place_says_so(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True)
    data = [{key: value[0] for key, value in token_batch(0).items()}]
    trainer = Trainer(
        tiny_llama(),
        arguments,
        train_dataset=data,
        callbacks=[localora.LocalizationCallback()],  # type: ignore[arg-type]
    )
    with pytest.raises(localora.CalibrationError, match=r"no active localora adapter.*get_peft_model"):
        trainer.train()


@pytest.mark.parametrize("size", [-3, "big"])
def test_a_config_of_impossible_sizes_is_no_model(tmp_path: Path, size: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": size}))
    with pytest.raises(ModelError, match=re.escape(str(tmp_path))):
        predict_cost(str(tmp_path), localora.CpsLoraConfig(r=8, target_modules="all-linear"))


@pytest.mark.parametrize("text", ["x: !!timestamp nope", 'x: !!float ""', "x: !!bool maybe"])
def test_a_yaml_tag_before_another_kind_of_value_is_one_sentence(text: str) -> None:
    with pytest.raises(RecipeError, match="not valid YAML"):
        parse_yaml(text, "mine.yaml", [])


BATCHES = [token_batch(0)]
ADAPTED = placed(repartition_every=1)
MIXED_UP: dict[str, tuple[Any, str]] = {  # a call of the public API, and what it is told
    "calibrate a name": (lambda new, out: localora.calibrate("x", BATCHES), "needs the model"),
    "no batches": (lambda new, out: localora.calibrate(new(), None), "needs batches: a list.* got None"),
    "batches a number": (lambda new, out: localora.calibrate(new(), 5), "needs batches.* type int"),
    "batches a text": (lambda new, out: localora.calibrate(new(), "abc"), "needs batches.* type str"),
    "numbers": (lambda new, out: localora.calibrate(new(), [1, 2]), "batch 1 is of type int; it must be a dict"),
    "texts": (lambda new, out: localora.calibrate(new(), ["a text"]), "batch 1 is of type str; it must be a dict"),
    "steps a text": (lambda new, out: localora.calibrate(new(), BATCHES, steps="8"), "steps must be an integer.* '8'"),
    "steps 0": (lambda new, out: localora.calibrate(new(), BATCHES, steps=0), "steps must be an integer of at least 1"),
    "steps without end": (lambda new, out: localora.calibrate(new(), BATCHES, steps=2**70), "steps must be at most"),
    "steps of digits": (lambda new, out: localora.calibrate(new(), BATCHES, steps=-(10**5000)), "number of 16610 bits"),
    "steps true": (lambda new, out: localora.calibrate(new(), BATCHES, steps=True), "steps must be an integer"),
    "no function": (
        lambda new, out: localora.calibrate(new(), BATCHES, loss_fn=3),
        r"loss_fn must be a function \(mod",
    ),
    "no loss": (lambda new, out: localora.calibrate(new(), BATCHES, loss_fn=lambda m, b: None), "it gave a NoneType"),
    "a float": (lambda new, out: localora.calibrate(new(), BATCHES, loss_fn=lambda m, b: 1.0), "it gave a float"),
    "many losses": (
        lambda new, out: localora.calibrate(new(), BATCHES, loss_fn=lambda m, b: m(**b).logits),
        r"it gave a tensor of shape \(",
    ),
    "detached": (
        lambda new, out: localora.calibrate(new(), BATCHES, loss_fn=lambda m, b: m(**b).loss.detach()),
        "has no gradient: it was detached",
    ),
    "events of a name": (lambda new, out: localora.Repartitioner("x", None, 3, BATCHES), "needs the model"),
    "steps of events": (lambda new, out: localora.Repartitioner(ADAPTED, None, "3", BATCHES), "total_steps must be"),
    "half a step": (lambda new, out: localora.Repartitioner(ADAPTED, None, 2.5, BATCHES), "total_steps must be"),
    "no step": (lambda new, out: localora.Repartitioner(ADAPTED, None, 0, BATCHES), "total_steps must be"),
    "events of nothing": (lambda new, out: localora.Repartitioner(ADAPTED, None, 3, None), "needs batches"),
    "events of one": (lambda new, out: localora.Repartitioner(ADAPTED, None, 3, BATCHES[0]), r"pass a list: \[batch\]"),
    "export nothing": (lambda new, out: localora.export_lora(None, out), "must be a path.* got None"),
    "export a config": (lambda new, out: localora.export_lora(localora.CpsLoraConfig(), out), "must be a path"),
    "export a state": (lambda new, out: localora.export_lora({}, out), "must be a path.* type dict"),
    "export to nowhere": (lambda new, out: localora.export_lora(ADAPTED, None), "out must be a path"),
    "rank a text": (lambda new, out: localora.export_lora(ADAPTED, out, rank="4"), "rank must be an integer"),
    "rank a half": (lambda new, out: localora.export_lora(ADAPTED, out, rank=2.5), "rank must be an integer"),
    "rank true": (lambda new, out: localora.export_lora(ADAPTED, out, rank=True), "rank must be an integer"),
    "overwrite a text": (lambda new, out: localora.export_lora(ADAPTED, out, overwrite="no"), "overwrite must be True"),
    "modelfile of lines": (
        lambda new, out: localora.export_lora(ADAPTED, out, modelfile="base\nSYSTEM evil"),
        "modelfile has several lines",
    ),
    "modelfile 5": (lambda new, out: localora.export_lora(ADAPTED, out, modelfile=5), "modelfile must be the name"),
    "load nothing": (lambda new, out: localora.load(None), "must be a path"),
    "swap in nothing": (lambda new, out: localora.hot_swap(ADAPTED, None), "folder must be a path"),
    "swap in a name": (lambda new, out: localora.hot_swap("x", out), "needs the model"),
    "placement of a name": (lambda new, out: localora.placement_of("x"), "needs the model"),
    "update of nothing": (lambda new, out: localora.calibrate_from_update(new(), None), "lora must be a path"),
    "cost of a model": (lambda new, out: predict_cost(tiny_llama(), localora.CpsLoraConfig()), "model.config"),
    "cost of text": (
        lambda new, out: predict_cost("llama-3-8b", localora.CpsLoraConfig(), tokens="2"),
        "tokens must be an integer",
    ),
    "cost in text": (
        lambda new, out: predict_cost("llama-3-8b", localora.CpsLoraConfig(), dtype="bf16"),
        "dtype must be a torch.dtype",
    ),
    "inspect nothing": (lambda new, out: inspect_delta(None), "source must be a path"),
    "inspect clusters": (
        lambda new, out: inspect_delta(ADAPTED, clusters=("a",)),
        "clusters must be a list of numbers",
    ),
    "inspect a cluster": (lambda new, out: inspect_delta(ADAPTED, clusters=2), "clusters must be a list of numbers"),
    "a sum of text": (
        lambda new, out: ADAPTED.base_model.add_weighted_adapter(["default"], ["x"], "sum"),
        "weights must be finite numbers",
    ),
    "a name with a dot": (
        lambda new, out: ADAPTED.base_model.add_weighted_adapter(["default"], [1.0], "a.b"),
        "has no dots: 'a.b'",
    ),
}


@pytest.mark.parametrize("name", MIXED_UP)
def test_arguments_of_another_kind_end_in_a_sentence(tmp_path: Path, name: str) -> None:
    def new() -> PeftModel:
        return get_peft_model(tiny_llama(), localora.CpsLoraConfig(r=4, clusters=2, target_modules=["q_proj"]))

    call, message = MIXED_UP[name]
    with pytest.raises(LocaloraError, match=message):
        call(new, tmp_path / "out")
    assert not (tmp_path / "out").exists()
