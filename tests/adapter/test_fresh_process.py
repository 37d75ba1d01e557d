"""What only a fresh process can show: placements are read and never recomputed, and exports need no localora.

Importing torch, PEFT and transformers takes seconds, so one process of each kind checks all methods.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from localora import Placement, calibrate, export_lora, placement_of
from method_table import METHODS
from patience import PATIENCE
from tiny_models import LLAMA_TARGETS, tiny_llama, token_batch

pytestmark = pytest.mark.slow

LOAD_ADAPTERS = """
import json, sys
from pathlib import Path
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
import localora
from localora.placement import coclustering, random, taylor
from localora.adapter import model as tuner_model
from localora.lifecycle import planning

def refuse(*_, **__):
    raise AssertionError("a planner was called at load")

for module, name in (
    (taylor, "plan_block"), (planning, "plan_block"), (coclustering, "plan_coclusters"),
    (planning, "plan_coclusters"), (random, "random_partition"), (random, "contiguous_partition"),
    (tuner_model, "random_partition"), (tuner_model, "contiguous_partition"),
):
    assert hasattr(module, name), (module, name)
    setattr(module, name, refuse)

folder = Path(sys.argv[1])
tokens = load_file(folder / "tokens.safetensors")["input_ids"]
found, tensors = {}, {}
for name in json.loads(sys.argv[2]):
    adapter = folder / name
    config = PeftConfig.from_pretrained(str(adapter))
    models = {
        "peft": PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), adapter),
        "auto": AutoPeftModelForCausalLM.from_pretrained(adapter),
        "low": PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(folder / "base"), adapter, low_cpu_mem_usage=True
        ),
    }
    found[name] = {"config": type(config).__name__, "placement": config.placement, "digests": {}}
    for kind, model in models.items():
        with torch.no_grad():
            tensors[f"{name}.{kind}"] = model.eval()(input_ids=tokens).logits
        placed = localora.placement_of(model)
        digest = localora.Placement.digest_of
        found[name]["digests"][kind] = {key: digest(value.partitions) for key, value in placed.items()}
save_file(tensors, folder / "logits.safetensors")
print(json.dumps(found))
"""

LOAD_EXPORTS = """
import json, sys
from pathlib import Path
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig
from safetensors.torch import load_file, save_file

folder = Path(sys.argv[1])
tokens = load_file(folder / "tokens.safetensors")["input_ids"]
tensors, types = {}, {}
for name in json.loads(sys.argv[2]):
    types[name] = type(PeftConfig.from_pretrained(str(folder / f"{name}-lora"))).__name__
    model = AutoPeftModelForCausalLM.from_pretrained(folder / f"{name}-lora").eval()
    with torch.no_grad():
        tensors[name] = model(input_ids=tokens).logits
try:
    PeftConfig.from_pretrained(str(folder / "g-lora"))
    types["unregistered"] = "loaded"
except KeyError as error:
    types["unregistered"] = str(error)
assert not [module for module in sys.modules if module.partition(".")[0] == "localora"]
save_file(tensors, folder / "exported.safetensors")
print(json.dumps(types))
"""


def fresh(script: str, folder: Path) -> dict:
    names = json.dumps([method.name for method in METHODS])
    run = subprocess.run(
        [sys.executable, "-c", script, str(folder), names],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def saved(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict, dict]:
    """A base model, each method's calibrated adapter (random where there is nothing to calibrate), and its export."""
    folder = tmp_path_factory.mktemp("adapters")
    tiny_llama().save_pretrained(folder / "base")
    tokens = token_batch()["input_ids"]
    save_file({"input_ids": tokens}, folder / "tokens.safetensors")
    logits, digests = {}, {}
    for method in METHODS:
        base = tiny_llama()
        base.name_or_path = base.config._name_or_path = str(folder / "base")
        placement = "random" if method.name == "hybrid" else "calibrate"
        config = method.config(target_modules=LLAMA_TARGETS, placement=placement, task_type="CAUSAL_LM")
        model = get_peft_model(base, config).eval()
        if method.places and placement == "calibrate":
            calibrate(model, [token_batch(3)])
        model.save_pretrained(folder / method.name)
        export_lora(folder / method.name, folder / f"{method.name}-lora")
        with torch.no_grad():
            logits[method.name] = model(input_ids=tokens).logits
        digests[method.name] = {
            key: Placement.digest_of(value.partitions) for key, value in placement_of(model).items()
        }
    return folder, logits, digests


def test_placements_are_read_and_never_recomputed(saved: tuple) -> None:
    folder, logits, digests = saved
    found = fresh(LOAD_ADAPTERS, folder)
    loaded = load_file(folder / "logits.safetensors")
    for method in METHODS:
        assert found[method.name]["config"] == type(method.config()).__name__
        for kind in ("peft", "auto", "low"):
            assert found[method.name]["digests"][kind] == digests[method.name], (method.name, kind)
            assert torch.equal(loaded[f"{method.name}.{kind}"], logits[method.name]), (method.name, kind)


def test_exports_load_with_stock_peft_without_localora(saved: tuple) -> None:
    folder, logits, _ = saved
    types = fresh(LOAD_EXPORTS, folder)
    exported = load_file(folder / "exported.safetensors")
    for method in METHODS:
        assert types[method.name] == "LoraConfig"
        expected = logits[method.name]
        assert (exported[method.name] - expected).norm() <= 1e-5 * expected.norm(), method.name
    assert "LOCALIZED" in types["unregistered"]  # the adapter itself does need localora
