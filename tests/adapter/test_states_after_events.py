"""What an event leaves in the model goes through checkpoints, whole states, other adapters and merging unharmed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from localora import CpsLoraConfig, GLoraConfig, Repartitioner, ScheduleError, adapter_size, hold_factors
from localora.adapter.layer import LocalizedLinear
from localora.errors import AdapterError
from tiny_models import LLAMA_TARGETS, tiny_llama, token_batch

MODES = pytest.mark.parametrize("frozen", ["factors", "merged"])


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return tiny_llama()


def config(**options: Any) -> CpsLoraConfig:
    return CpsLoraConfig(
        **{"r": 4, "clusters": 2, "placement": "random", "init_weights": False, "repartition": [1.0]}
        | {"target_modules": LLAMA_TARGETS, "task_type": "CAUSAL_LM"}
        | options
    )


def adapted(**options: Any) -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(llama(), config(**options))  # type: ignore[return-value]


def after_event(model: PeftModel) -> Tensor:
    """The logits after an event, and some training after it."""
    Repartitioner(model, None, 1, [token_batch(0)]).step()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "localized_local_B.default" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)), alpha=0.02)
    return logits(model)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(input_ids=token_batch(0)["input_ids"]).logits


def same(found: Tensor, expected: Tensor, base: Tensor | None = None) -> None:
    """Within rounding, where the adapter's own effect is a thousand times that."""
    assert (found - expected).norm() < 1e-6 * expected.norm()
    assert (expected - (logits(llama()) if base is None else base)).norm() > 1e-3 * expected.norm()


@MODES
def test_checkpoints_of_an_adapter_that_was_loaded(frozen: str, tmp_path: Path) -> None:
    adapted(frozen=frozen).save_pretrained(tmp_path / "stage")
    model = PeftModel.from_pretrained(llama(), tmp_path / "stage", is_trainable=True)
    start = logits(model)
    model.save_pretrained(tmp_path / "before")
    expected = after_event(model)
    model.save_pretrained(tmp_path / "after")
    resumed = PeftModel.from_pretrained(llama(), tmp_path / "stage", is_trainable=True)
    resumed.load_adapter(tmp_path / "after", "default", is_trainable=True)  # as a Trainer resumes
    same(logits(resumed), expected)
    assert adapter_size(resumed) == adapter_size(model)
    model.load_adapter(tmp_path / "before", "default", is_trainable=True)  # as it goes back to its best checkpoint
    same(logits(model), start)


@MODES
def test_the_state_of_a_whole_model(frozen: str, tmp_path: Path) -> None:
    model = adapted(frozen=frozen)
    untouched = {key: value.clone() for key, value in model.state_dict().items()}
    start, expected = logits(model), after_event(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path)
    same(logits(loaded), expected)
    for other in (adapted(frozen=frozen), loaded, model):  # made as before; with its frozen term beside; the very one
        other.load_state_dict(state)
        same(logits(other), expected)
        assert adapter_size(other).rank == adapter_size(model).rank == 16
        other.save_pretrained(tmp_path / "again")
        same(logits(PeftModel.from_pretrained(llama(), tmp_path / "again")), expected)
    with model.disable_adapter():
        same(logits(llama()), logits(model), base=expected)
    model.load_state_dict(untouched)
    same(logits(model), start)
    assert adapter_size(model).rank == 8


def test_a_copy_that_shares_the_config_has_no_part_in_the_other_s_events(tmp_path: Path) -> None:
    model = adapted()
    start = logits(model)
    model.add_adapter("ref", model.peft_config["default"])  # as TRL makes its reference
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ref." in name:
                parameter.copy_(model.get_parameter(name.replace(".ref.", ".default.")))
    after_event(model)
    model.save_pretrained(tmp_path)
    same(logits(PeftModel.from_pretrained(llama(), tmp_path / "ref")), start)


def test_kept_factors_follow_what_moves_in_and_out_of_the_base_weight() -> None:
    model = adapted(frozen="merged")
    expected = after_event(model)
    with hold_factors(model):
        for _ in range(3):
            same(logits(model), expected)
        with model.disable_adapter():
            logits(model)
        for _ in range(3):
            same(logits(model), expected)


@pytest.mark.parametrize("what", ["reference", "merge"])
def test_inference_mode_leaves_a_model_that_trains(what: str) -> None:
    model = adapted(frozen="merged")
    after_event(model)
    with torch.inference_mode():
        if what == "merge":
            model.merge_adapter()
            model.unmerge_adapter()
        else:
            with model.disable_adapter():
                logits(model)
    model.train()(**token_batch(0)).loss.backward()
    grads = [parameter.grad for name, parameter in model.named_parameters() if "localized_local_A" in name]
    assert all(grad is not None and grad.any() for grad in grads)


def test_no_event_while_the_adapter_is_merged() -> None:
    model = adapted(frozen="merged")
    model.merge_adapter()
    repartitioner = Repartitioner(model, None, 1, [token_batch(0)])
    with pytest.raises(ScheduleError, match=r"'default' is merged into .*; call unmerge_adapter\(\) first"):
        repartitioner.step()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"layers_to_transform": [0]}, {"layers_to_transform": [1]}),
        ({"target_modules": ["q_proj"], "exclude_modules": ["v_proj"]}, {"target_modules": ["v_proj"]}),
        ({"target_modules": r".*q_proj"}, {"target_modules": ["v_proj"]}),
    ],
)
def test_a_weighted_sum_has_the_layers_of_all(first: dict[str, Any], second: dict[str, Any]) -> None:
    model = adapted(**first)
    model.add_adapter("other", config(**second, seed=3))
    model.base_model.add_weighted_adapter(["default", "other"], [0.5, -2.0], "sum")
    found = {
        key: layer.get_delta_weight("sum")
        for key, layer in model.named_modules()
        if isinstance(layer, LocalizedLinear) and "sum" in layer.localized_layout
    }
    expected = {
        key: sum(
            weight * layer.get_delta_weight(name)
            for name, weight in (("default", 0.5), ("other", -2.0))
            if name in layer.localized_layout
        )
        for key, layer in model.named_modules()
        if isinstance(layer, LocalizedLinear)
    }
    assert found.keys() == expected.keys()
    for key, delta in found.items():
        assert torch.allclose(delta, expected[key], atol=1e-6)  # type: ignore[arg-type]


def test_a_loaded_adapter_compiles_into_one_graph(tmp_path: Path) -> None:
    model = adapted()
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path)
    same(logits(torch.compile(loaded, fullgraph=True, backend="eager")), expected)


def test_what_a_hook_of_the_base_layer_made_is_not_written_to() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 8))
    base[0].register_forward_hook(lambda _, __, y: torch.tanh(y))
    model = get_peft_model(base, config(target_modules=["0"], task_type=None))  # type: ignore[arg-type]
    kept: list[Tensor] = []
    model.base_model.model[0].base_layer.register_forward_hook(lambda _, __, y: kept.append(y))
    x = torch.randn(3, 8)
    model(x).sum().backward()
    with model.disable_adapter():
        model(x)
    assert torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("make", [config, lambda **options: GLoraConfig(r=4, placement="random", **options)])
def test_a_vector_alone(make: Any) -> None:
    model = get_peft_model(
        nn.Sequential(nn.Linear(64, 48)), make(target_modules=["0"], init_weights=False, task_type=None)
    )
    x = torch.randn(64)
    model(x).sum().backward()
    with torch.no_grad():
        assert torch.allclose(model(x), model(x[None])[0], atol=1e-6)


def test_the_size_of_an_adapter_that_is_not_there() -> None:
    with pytest.raises(AdapterError, match="no layer of this model holds a localora adapter named 'typo'"):
        adapter_size(adapted(), "typo")
