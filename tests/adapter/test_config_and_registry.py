"""Configs: what they refuse, and that they load back as what they were. The registry: idempotent, never silent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.peft_types import PeftType

from localora import CpsLoraConfig, GLoraConfig
from localora.adapter import registry
from localora.adapter.config import LocalizedConfig
from localora.adapter.model import LocalizedModel
from localora.errors import ConfigError
from method_table import Method, every_method


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CpsLoraConfig(r=0), r"r must be an integer in \[1, 65536\], got 0"),
        (lambda: CpsLoraConfig(r=2.5), r"r must be an integer in \[1, 65536\], got 2.5"),
        (lambda: GLoraConfig(r=-1), r"r must be an integer in \[1, 65536\], got -1"),
        (lambda: CpsLoraConfig(rank_pattern={"q": 0}), r"rank_pattern\['q'\] must be an integer of at least 1, got 0"),
        (lambda: GLoraConfig(local_size=0.0), r"local_size must be a number in \(0, 1\], got 0.0"),
        (lambda: GLoraConfig(local_size=1.01), r"local_size must be a number in \(0, 1\], got 1.01"),
        (lambda: GLoraConfig(local_size=float("nan")), r"local_size must be a finite number in \(0, 1\], got nan"),
        (lambda: GLoraConfig(global_share=1.5), r"global_share must be a number in \[0, 1\], got 1.5"),
        (lambda: CpsLoraConfig(global_share=-0.5), r"global_share must be a number in \[0, 1\], got -0.5"),
        (lambda: CpsLoraConfig(clusters=0), r"clusters must be an integer in \[1, 127\], got 0"),
        (lambda: CpsLoraConfig(clusters=128), r"clusters must be an integer in \[1, 127\], got 128"),
        (lambda: CpsLoraConfig(balance=2.0), r"balance must be a number in \[0, 1\], got 2.0"),
        (lambda: CpsLoraConfig(sketch=0), "sketch must be an integer of at least 1, got 0"),
        (lambda: CpsLoraConfig(dropout=1.0), r"dropout must be a number in \[0, 1\), got 1.0"),
        (
            lambda: CpsLoraConfig(placement="there"),
            "placement must be one of calibrate, random, contiguous, got",
        ),
        (lambda: CpsLoraConfig(repartition=[0.5, 0]), r"repartition must be a number in \(0, 1\], got 0"),
        (lambda: CpsLoraConfig(alpha="x"), "alpha must be a number or None above 0, got 'x'"),
        (lambda: CpsLoraConfig(alpha=-1), "alpha must be a number above 0, got -1"),
        (lambda: CpsLoraConfig(r=10**30), "r must be at most 2147483647, got a number of 31 digits"),
        (lambda: CpsLoraConfig(rank_pattern=[3]), r"rank_pattern must be a dict of string to integer"),
        (lambda: CpsLoraConfig(modules_to_save="lm_head"), "modules_to_save must be a list of strings or None"),
        (lambda: CpsLoraConfig(inference_mode="no"), "inference_mode must be true or false, got 'no'"),
        (lambda: CpsLoraConfig(layers_pattern="h"), "layers_pattern has no effect without layers_to_transform"),
        (
            lambda: CpsLoraConfig(target_modules="all-linear", layers_to_transform=[0]),
            "layers_to_transform needs target_modules as a list",
        ),
        (lambda: CpsLoraConfig(method="g-lora"), "CpsLoraConfig is the config of 'cps-lora', not of 'g-lora'"),
        (lambda: GLoraConfig(method="cps-lora"), "is the config of 'g-lora', not of 'cps-lora'"),
        (lambda: LocalizedConfig(), r"method None; localora knows g-lora, cps-lora\. Build GLoraConfig"),
        (lambda: LocalizedConfig(method="h-lora"), "names the method 'h-lora'; localora knows g-lora, cps-lora"),
    ],
)
def test_values_out_of_range(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@every_method
def test_names_of_peft_s_lora_are_accepted(method: Method) -> None:
    config = method.config_class(lora_alpha=3, lora_dropout=0.25, bias="none", use_dora=False, init_lora_weights=False)
    assert (config.alpha, config.dropout, config.init_weights) == (3, 0.25, False)
    assert not hasattr(config, "lora_alpha")
    assert config == method.config_class(alpha=3, dropout=0.25, init_weights=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora_alpha": 3, "alpha": 4}, "alpha and lora_alpha are one option of CpsLoraConfig; give it once"),
        ({"clusterz": 3}, "unknown key 'clusterz' for CpsLoraConfig; did you mean 'clusters'"),
        ({"lora_droput": 0.1}, "unknown key 'lora_droput' for CpsLoraConfig; did you mean 'lora_dropout'"),
        ({"bias": "all"}, "bias='all' is not supported, because biases are not trained"),
        ({"use_dora": True}, "use_dora=True is not supported, because DoRA's trained magnitudes"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported, because the factors start"),
        ({"use_qalora": True}, "use_qalora=True is not supported: peft.LoraConfig has use_qalora, localora has not"),
    ],
)
def test_unknown_and_unsupported_arguments(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CpsLoraConfig(**given)


@pytest.mark.parametrize("r", [1, 2, 3, 8, 50])
def test_alpha_is_twice_the_rank_of_each_layer_unless_set(r: int) -> None:
    for make in (GLoraConfig, CpsLoraConfig):
        config = make(r=r, rank_pattern={"wide": 4 * r}, alpha_pattern={"loud": 12.0 * r})
        assert [config.layer_scale(name) for name in ("m.q", "m.wide", "m.loud")] == [2, 2, 12]
        rooted = make(r=r, rank_pattern={"wide": 4 * r}, use_rslora=True)
        assert rooted.layer_scale("m.q") == pytest.approx(2 * r**0.5)
        assert rooted.layer_scale("m.wide") == pytest.approx(4 * r**0.5)
        fixed = make(r=r, alpha=3 * r, rank_pattern={"wide": 4 * r})
        assert [fixed.layer_scale(name) for name in ("m.q", "m.wide")] == [3, 0.75]  # as in PEFT: one alpha for all


@pytest.mark.parametrize(
    "pattern", ["((.*)*)*!", "(a+)+$", "(a|a)*b", "(a?){50}a{50}", "a?" * 40, ".*" * 10 + "!", "(", "(?i)q"]
)
def test_patterns_that_cannot_be_matched_in_bounded_time_are_refused(pattern: str) -> None:
    for options in ({"rank_pattern": {pattern: 4}}, {"alpha_pattern": {pattern: 4.0}}, {"target_modules": pattern}):
        if pattern == "(?i)q" and "target_modules" in options:
            continue  # flags may stand at the start of a whole expression, but not in the middle of PEFT's
        with pytest.raises(ConfigError, match=f"{next(iter(options))}: .*(for ever to match|no regular expression)"):
            CpsLoraConfig(**options)


def test_patterns_without_end_are_refused() -> None:
    for key in ("rank_pattern", "alpha_pattern"):
        CpsLoraConfig(**{key: {f"q{i}": 4 for i in range(1024)}})
        with pytest.raises(ConfigError, match=rf"{key} has 1,025 entries; 1,024 may be tried on each layer"):
            CpsLoraConfig(**{key: {f"q{i}": 4 for i in range(1025)}})


@pytest.mark.parametrize(
    "pattern",
    ["q_proj", r".*layers\.(0|1|12)\..*q_proj", r"model\.layers\.\d+\.(self_attn\.(q|k)_proj|mlp\.up)"],
)
def test_patterns_that_people_write_are_taken(pattern: str) -> None:
    CpsLoraConfig(rank_pattern={pattern: 4}, alpha_pattern={pattern: 4.0}, target_modules=pattern)


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
        ({"method": "g-lora"}, "unknown key '(balance|clusters|sketch)' for GLoraConfig"),
        ({"method": "other"}, "names the method 'other'; localora knows"),
        ({"clusters": 0}, r"clusters must be an integer in \[1, 127\]"),
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
