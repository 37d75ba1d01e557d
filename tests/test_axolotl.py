"""The plugin for axolotl, against the installed package, or a stand-in of the interface that it uses (axolotl 0.19)."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from transformers import Trainer, TrainingArguments

from adapted_models import logits
from localora import CpsLoraConfig, GLoraConfig
from localora.adapter.peft_names import UnknownOptionError
from localora.errors import ConfigError
from tiny_models import LLAMA_TARGETS, tiny_llama, token_batch

INSTALLED = importlib.util.find_spec("axolotl") is not None
PAGE = Path(__file__).parents[1] / "docs" / "trainers.md"


class Settings(dict[str, Any]):
    """As axolotl's DictDefault: a key that is not set is None, also as an attribute."""

    def __missing__(self, key: str) -> None:
        return None

    def __getattr__(self, key: str) -> Any:
        return self[key]


@dataclass(frozen=True)
class AdapterCapabilities:
    name: str
    lora_like: bool = False
    relora: bool = False


class BasePlugin:
    def get_input_args(self) -> str | None: ...

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]: ...

    def load_adapter(self, model: Any, cfg: Any, inference: bool = False, config_only: bool = False) -> Any: ...

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]: ...


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if not INSTALLED:
        base = ModuleType("axolotl.integrations.base")
        base.AdapterCapabilities, base.BasePlugin = AdapterCapabilities, BasePlugin  # type: ignore[attr-defined]
        for name in ("axolotl", "axolotl.integrations"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.delitem(sys.modules, "localora.axolotl", raising=False)
    return importlib.import_module("localora.axolotl")


def settings(**keys: Any) -> Settings:
    return Settings({"adapter": "cps-lora", "lora_r": 4, "lora_target_modules": LLAMA_TARGETS, **keys})


def test_it_fits_the_interface(module: ModuleType) -> None:
    plugin = module.LocaloraPlugin()
    own = {name: method for name, method in vars(type(plugin)).items() if inspect.isfunction(method)}
    assert len(own) == 4
    for name, method in own.items():
        theirs = inspect.signature(getattr(type(plugin).__mro__[1], name)).parameters
        assert list(inspect.signature(method).parameters) == list(theirs), name
    assert [each.name for each in plugin.get_adapter_capabilities()] == ["g-lora", "cps-lora"]
    assert not any(each.lora_like or each.relora for each in plugin.get_adapter_capabilities())
    assert getattr(module, plugin.get_input_args().rpartition(".")[2])(localora={"clusters": 2}).localora == {
        "clusters": 2
    }


def test_axolotl_s_keys_are_the_config_s(module: ModuleType) -> None:
    load = module.LocaloraPlugin().load_adapter
    cfg = settings(
        lora_alpha=12,
        lora_dropout=0.1,
        lora_rank_pattern=Settings(q_proj=2),
        peft_layers_to_transform=[1],
        peft_use_rslora=True,
        localora={"clusters": 2, "repartition": [0.5]},
    )
    model, config = load(tiny_llama(), cfg)
    assert isinstance(config, CpsLoraConfig)
    assert (config.r, config.alpha, config.dropout, config.clusters) == (4, 12, 0.1, 2)
    assert (config.use_rslora, config.repartition, config.task_type) == (True, [0.5], "CAUSAL_LM")
    assert config.layer_rank("model.layers.1.self_attn.q_proj") == 2
    names = [name for name, _ in model.named_parameters() if "localized_" in name]
    assert names
    assert all(".layers.1." in name for name in names)

    nothing, config = load(
        tiny_llama(), settings(adapter="g-lora", lora_target_linear=True, lora_target_modules=None), config_only=True
    )
    assert nothing is None
    assert isinstance(config, GLoraConfig)
    assert config.target_modules == "all-linear"
    assert load(tiny_llama(), settings(adapter="mora")) is None
    assert module.LocaloraPlugin().add_callbacks_pre_trainer(settings(adapter="lora"), tiny_llama()) == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"peft_use_dora": True}, "use_dora=True is not supported, because DoRA's"),
        ({"peft": Settings(loftq_config=Settings(loftq_bits=4))}, "init_lora_weights='loftq' is not supported"),
        ({"lora_target_linear": True}, "leave lora_target_modules out, or it"),
        ({"localora": {"r": 8}}, "r stands in localora and among axolotl's own keys; give it once"),
        ({"localora": {"cluster": 8}}, "unknown key 'cluster' for CpsLoraConfig; did you mean 'clusters'"),
    ],
)
def test_what_it_refuses(module: ModuleType, keys: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, UnknownOptionError), match=re.escape(message)):
        module.LocaloraPlugin().load_adapter(tiny_llama(), settings(**keys))


@pytest.mark.filterwarnings("ignore:Could not find a config file")  # of the base model, which is in no folder
def test_it_trains_and_its_adapter_is_loaded_again(module: ModuleType, tmp_path: Path) -> None:
    plugin, cfg = module.LocaloraPlugin(), settings(localora={"clusters": 2})
    model, _ = plugin.load_adapter(tiny_llama(), cfg)
    rows = [{key: value[0] for key, value in token_batch(seed=seed, examples=1).items()} for seed in range(8)]
    args = TrainingArguments(
        str(tmp_path), max_steps=3, learning_rate=1e-2, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = Trainer(model, args, train_dataset=rows, callbacks=plugin.add_callbacks_pre_trainer(cfg, model))
    trainer.train()
    trained = logits(model.eval())
    assert (trained - logits(tiny_llama().eval())).abs().max() > 1e-2
    model.save_pretrained(tmp_path / "adapter")
    cfg = settings(lora_model_dir=str(tmp_path / "adapter"))
    again, _ = plugin.load_adapter(tiny_llama(), cfg, inference=True)
    assert torch.equal(logits(again.eval()), trained)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_the_page_s_example(module: ModuleType) -> None:
    (text,) = re.findall(r"```yaml\n(plugins:.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    cfg = Settings(yaml.safe_load(text))
    assert cfg.plugins == ["localora.axolotl.LocaloraPlugin"]
    config = module.config_of(tiny_llama(), cfg)
    assert (config.method, config.r, config.clusters, config.repartition) == ("cps-lora", 16, 4, [0.5])


@pytest.mark.skipif(not INSTALLED, reason="axolotl is not installed")
def test_axolotl_finds_it() -> None:
    from axolotl.integrations.base import PluginManager
    from axolotl.loaders.adapter import load_adapter
    from axolotl.utils.dict import DictDefault

    manager = PluginManager.get_instance()
    manager.register("localora.axolotl.LocaloraPlugin")
    assert manager.supports_adapter("cps-lora")
    cfg = DictDefault(dict(settings(localora={"clusters": 2})))
    model, config = load_adapter(tiny_llama(), cfg, "cps-lora")
    assert config.clusters == 2
    assert any("localized_" in name for name, _ in model.named_parameters())
    (callback,) = manager.add_callbacks_pre_trainer(cfg, model)
    assert type(callback).__name__ == "LocalizationCallback"
