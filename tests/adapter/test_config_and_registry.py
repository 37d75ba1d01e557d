"""Configs: what they refuse, and that they load back as what they were. The registry: idempotent, never silent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.peft_types import PeftType

from localora import CpsLoraConfig, GlobalLocalLoraConfig
from localora.adapter import registry
from localora.adapter.config import LocalizedConfig
from localora.adapter.model import LocalizedModel
from method_table import Method, every_method


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CpsLoraConfig(r=0), "r must be an integer of at least 1, got 0"),
        (lambda: CpsLoraConfig(r=2.5), "r must be an integer of at least 1, got 2.5"),
        (lambda: GlobalLocalLoraConfig(r=-1), "r must be an integer of at least 1, got -1"),
        (lambda: CpsLoraConfig(rank_pattern={"q": 0}), r"rank_pattern\['q'\] must be an integer of at least 1, got 0"),
        (lambda: GlobalLocalLoraConfig(local_size=0.0), r"local_size must lie in \(0, 1\], got 0.0"),
        (lambda: GlobalLocalLoraConfig(local_size=1.01), r"local_size must lie in \(0, 1\], got 1.01"),
        (lambda: GlobalLocalLoraConfig(local_size=float("nan")), r"local_size must lie in \(0, 1\], got nan"),
        (lambda: GlobalLocalLoraConfig(global_share=1.5), r"global_share must lie in \[0, 1\], got 1.5"),
        (lambda: CpsLoraConfig(global_share=-0.5), r"global_share must lie in \[0, 1\], got -0.5"),
        (lambda: CpsLoraConfig(clusters=0), "clusters must be an integer of at least 1, got 0"),
        (lambda: CpsLoraConfig(clusters=128), "clusters must be at most 127, got 128"),
        (lambda: CpsLoraConfig(balance=2.0), r"balance must lie in \[0, 1\], got 2.0"),
        (lambda: CpsLoraConfig(sketch=0), "sketch must be an integer of at least 1, got 0"),
        (lambda: CpsLoraConfig(dropout=1.0), r"dropout must lie in \[0, 1\), got 1.0"),
        (
            lambda: CpsLoraConfig(placement="there"),
            "placement must be one of calibrate, random, contiguous, got",
        ),
        (lambda: GlobalLocalLoraConfig(refine=-1), "refine must be an integer of at least 0, got -1"),
        (lambda: CpsLoraConfig(layers_pattern="h"), "layers_pattern has no effect without layers_to_transform"),
        (
            lambda: CpsLoraConfig(target_modules="all-linear", layers_to_transform=[0]),
            "layers_to_transform needs target_modules as a list",
        ),
        (lambda: CpsLoraConfig(method="g-lora"), "CpsLoraConfig is the config of 'cps-lora', not of 'g-lora'"),
        (lambda: GlobalLocalLoraConfig(method="cps-lora"), "is the config of 'g-lora', not of 'cps-lora'"),
        (lambda: LocalizedConfig(), r"method None; localora knows g-lora, cps-lora\. Build GlobalLocalLoraConfig"),
        (lambda: LocalizedConfig(method="h-lora"), "names the method 'h-lora'; localora knows g-lora, cps-lora"),
    ],
)
def test_values_out_of_range(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_arguments() -> None:
    with pytest.raises(TypeError, match="lora_alpha"):
        CpsLoraConfig(lora_alpha=3)


@every_method
def test_a_saved_config_is_the_same_config(method: Method, tmp_path: Path) -> None:
    config = method.config(
        target_modules=["b", "a"], rank_pattern={"a": 2}, layers_to_transform=[1], exclude_modules=["c"], r=6, seed=4
    )
    config.save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LOCALIZED"
    assert saved["method"] == config.method
    for loader in (PeftConfig, type(config), LocalizedConfig):
        back = loader.from_pretrained(str(tmp_path))
        assert type(back) is type(config)
        assert {**back.to_dict(), "inference_mode": None} == {**config.to_dict(), "inference_mode": None}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"clusterz": 3}, "unknown key 'clusterz' for CpsLoraConfig; did you mean 'clusters'"),
        ({"xyzzy": 3}, "unknown key 'xyzzy' for CpsLoraConfig; it may come from a newer localora"),
        ({"local_size": 0.5}, "unknown key 'local_size' for CpsLoraConfig"),
        ({"method": "g-lora"}, "unknown key '(balance|clusters|sketch|repartition_signal)' for GlobalLocalLoraConfig"),
        ({"method": "other"}, "names the method 'other'; localora knows"),
        ({"clusters": 0}, "clusters must be an integer of at least 1"),
    ],
)
def test_an_edited_config_file(tmp_path: Path, edit: dict[str, object], message: str) -> None:
    CpsLoraConfig().save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    with pytest.raises(ValueError, match=message):
        PeftConfig.from_pretrained(str(tmp_path))


def test_registered_once_and_again() -> None:
    for _ in range(2):
        registry.register()
    assert [name for name in PeftType.__members__].count("LOCALIZED") == 1
    assert PeftType("LOCALIZED") is PeftType.LOCALIZED is PeftType["LOCALIZED"]
    assert PeftType.LOCALIZED == "LOCALIZED"
    assert PeftType.LOCALIZED.name == PeftType.LOCALIZED.value == "LOCALIZED"
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.LOCALIZED] is LocalizedConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LOCALIZED] is LocalizedModel


def test_a_taken_type_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign:
        pass

    monkeypatch.setitem(PEFT_TYPE_TO_TUNER_MAPPING, PeftType.LOCALIZED, Foreign)
    with pytest.raises(RuntimeError, match=r"LOCALIZED is already registered, by .*Foreign.*cannot be used"):
        registry.register()
    monkeypatch.delitem(PEFT_TYPE_TO_TUNER_MAPPING, PeftType.LOCALIZED)
    with pytest.raises(RuntimeError, match="already registered, by PEFT itself"):
        registry.register()
