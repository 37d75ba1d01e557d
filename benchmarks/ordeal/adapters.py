"""Damaged adapter files: refused by name, or loaded as exactly what they say, by a formula that is not our code.

dW = s B A where the row's and the column's label agree (everywhere for the term on the whole matrix), s = alpha / r.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from traceback import walk_tb
from typing import Any

import hypothesis
import numpy as np
import torch
from benchmarks.ordeal.outcome import Tally
from hypothesis import strategies
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from localora import CpsLoraConfig
from localora.errors import LocaloraError

EXACT, REFUSED = "exactly what the file says", "refused by name"
OVERWRITTEN = "refused by name at the first pass, with the tensor of the base model that transformers overwrote"
BEFORE = "refused by PEFT or transformers before our code was asked"  # in their words: no JSON, no such method
Tensors = dict[str, torch.Tensor]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def damage_adapters(model: Path, folder: Path, cases: int, seed: int = 0) -> Tally:
    """Load `cases` adapters with one to three things wrong with each, by PEFT's loader or by transformers' own."""
    tally = Tally("damaged adapter files", (EXACT, REFUSED, BEFORE, OVERWRITTEN))
    base = AutoModelForCausalLM.from_pretrained(model)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    sound = folder / "sound"
    config = CpsLoraConfig(
        r=4,
        clusters=2,
        global_share=0.5,
        placement="random",
        init_weights=False,
        target_modules=["q_proj", "down_proj"],
    )
    get_peft_model(base, config).unload()
    get_peft_model(base, config).save_pretrained(sound)
    bases = {way: AutoModelForCausalLM.from_pretrained(model) for way in WAYS}

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=cases, deadline=None, database=None, phases=[hypothesis.Phase.generate])
    @hypothesis.given(rng=strategies.randoms(use_true_random=False), way=strategies.sampled_from(sorted(WAYS)))
    def try_one(rng: random.Random, way: str) -> None:
        damaged = folder / "damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(sound, damaged)
        done = [_damage(damaged, rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        outcome = _outcome(bases[way], before, damaged, WAYS[way])
        if outcome not in (EXACT, REFUSED):
            bases[way] = AutoModelForCausalLM.from_pretrained(model)  # whatever was left on it
        tally.note(outcome, f"{way}: {' and '.join(done)}")

    try_one()
    return tally


def _by_peft(base: PreTrainedModel, folder: Path) -> dict[str, torch.Tensor]:
    model = PeftModel.from_pretrained(base, str(folder))
    deltas = {name: layer.get_delta_weight("default") for name, layer in _layers(model)}
    model.unload()
    return deltas


def _by_transformers(base: PreTrainedModel, folder: Path) -> dict[str, torch.Tensor]:
    """Which asks nobody while it loads: damage is found in the first pass."""
    base.load_adapter(str(folder))
    base(torch.arange(4)[None])
    deltas = {name: layer.get_delta_weight("default") for name, layer in _layers(base)}
    base.delete_adapter("default")
    _clean(base)
    return deltas


WAYS = {"PeftModel.from_pretrained": _by_peft, "model.load_adapter": _by_transformers}


def _outcome(
    base: PreTrainedModel,
    before: Tensors,
    folder: Path,
    load: Callable[[PreTrainedModel, Path], dict[str, torch.Tensor]],
) -> str:
    try:
        deltas = load(base, folder)
    except LocaloraError as error:
        if "overwrote" in str(error):  # found, and the base model is to be loaded anew
            return OVERWRITTEN
        _clean(base)
        return REFUSED
    except Exception as error:
        _clean(base)
        ours = any(frame.f_globals["__name__"].startswith("localora.") for frame, _ in walk_tb(error.__traceback__))
        return f"unclear: {type(error).__name__}" if ours else BEFORE
    if any(not torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items()):
        return "overwrote the base"
    try:
        expected = _formula(folder)
    except (ValueError, TypeError, KeyError, ZeroDivisionError):
        return "loaded, and says nothing that can be computed"
    if deltas.keys() != expected.keys():
        return "other layers"
    if not all(np.isfinite(delta).all() for delta in expected.values()):
        return "loaded, though it is not finite"
    close = all(
        np.abs(deltas[name].double() - delta).max() <= 1e-5 * np.abs(delta).max() + 1e-9
        for name, delta in expected.items()
    )
    return EXACT if close else "silently other"


def _clean(base: PreTrainedModel) -> None:
    """Take off what a refused load had put on."""
    for name, layer in list(_layers(base)):
        parent, _, child = name.rpartition(".")
        setattr(base.get_submodule(parent), child, layer.base_layer)


def _layers(model: Any) -> list[tuple[str, Any]]:
    found = [(name, layer) for name, layer in model.named_modules() if hasattr(layer, "localized_row_labels")]
    return [(name.removeprefix("base_model.model."), layer) for name, layer in found]


def _formula(folder: Path) -> dict[str, np.ndarray]:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    r, alpha = config["r"], config["alpha"]
    alpha = 2 * r if alpha is None else alpha
    s = alpha / math.sqrt(r) if config["use_rslora"] else alpha / r
    tensors = {key: tensor.double().numpy() for key, tensor in load_file(folder / WEIGHTS).items()}
    deltas = {}
    for key in tensors:
        name, found, _ = key.partition(".localized_row_labels")
        if not found:
            continue
        rows, cols = tensors[key], tensors[f"{name}.localized_col_labels"]
        agree = rows[:, None] == cols[None, :]
        packed_A, packed_B = (tensors[f"{name}.localized_local_{side}.weight"] for side in "AB")
        delta = np.zeros((len(rows), len(cols)))
        delta[np.ix_(rows >= 0, cols >= 0)] = packed_B @ packed_A
        delta *= agree
        if f"{name}.localized_global_A.weight" in tensors:
            delta += tensors[f"{name}.localized_global_B.weight"] @ tensors[f"{name}.localized_global_A.weight"]
        deltas[name.removeprefix("base_model.model.")] = s * delta
    return deltas


def _damage(folder: Path, rng: random.Random) -> str:
    """Do one thing to the folder, and say which."""
    try:
        return rng.choice((_tensors, _tensors, _tensors, _settings, _settings, _bytes))(folder, rng)
    except Exception:  # an earlier damage left nothing that could be read and damaged again
        return "beyond further damage"


def _tensors(folder: Path, rng: random.Random) -> str:
    tensors = load_file(folder / WEIGHTS)
    labels = [key for key in tensors if "labels" in key]
    factors = [key for key in tensors if "labels" not in key]
    label, factor = rng.choice(labels), rng.choice(factors)
    other = rng.choice(("lm_head.weight", "model.norm.weight", f"{factor}x", factor.replace("q_proj", "k_proj"), "x"))
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.float8_e4m3fn, torch.complex64)
    size = tensors[label].numel()
    edits: dict[str, Callable[[], Any]] = {
        "a factor is missing": lambda: tensors.pop(factor),
        "labels are missing": lambda: tensors.pop(label),
        "a key too many": lambda: tensors.update({f"base_model.model.{other}": torch.ones(3, 3)}),
        "another dtype of a factor": lambda: tensors.update({factor: tensors[factor].to(rng.choice(dtypes))}),
        "another dtype of labels": lambda: tensors.update(
            {label: tensors[label].to(rng.choice((torch.int64, torch.float32)))}
        ),
        "a factor transposed": lambda: tensors.update({factor: tensors[factor].T.contiguous()}),
        "a factor cut": lambda: tensors.update({factor: tensors[factor][:, :-1].contiguous()}),
        "labels cut": lambda: tensors.update({label: tensors[label][:-1].clone()}),
        "a label out of range": lambda: tensors[label].__setitem__(
            rng.randrange(size), rng.choice((2, 5, 127, -2, -3, -128))
        ),
        "labels of nothing": lambda: tensors[label].fill_(rng.choice((-1, -2))),
        "labels in another order": lambda: tensors.update({label: tensors[label][torch.randperm(size)]}),
        "all in one cluster": lambda: tensors[label].zero_(),
        "a number that is none": lambda: tensors[factor].view(-1).__setitem__(0, rng.choice((math.nan, math.inf))),
        "a factor scaled": lambda: tensors[factor].mul_(rng.choice((0.0, -3.0, 1e30))),
        "a scalar for a factor": lambda: tensors.update({factor: torch.tensor(1.0)}),
    }
    name = rng.choice(list(edits))
    edits[name]()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return name


def _settings(folder: Path, rng: random.Random) -> str:
    values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    edits: dict[str, tuple[Any, ...]] = {
        "r": (0, -1, 2, 5, 2.5, True, "4", None, 10**6),
        "alpha": (0.0, -1.0, 8.0, math.nan, math.inf, "8", None),
        "clusters": (0, 1, 3, 127, 10**6, 2.0, "2"),
        "global_share": (0.0, 0.25, 1.5, -0.5, "half", None),
        "use_rslora": (True, "yes"),
        "target_modules": (["k_proj"], ["q_proj"], [], "all-linear", ["nowhere"], 3),
        "rank_pattern": ({"q_proj": 2}, {"((.*)*)*!": 2}, {"q_proj": -1}, []),
        "frozen_rank": (1, 10**6, -1, 2.5),
        "method": ("g-lora", "lora", 3),
        "peft_type": ("NOTHING", None),
        "unheard_of": (1,),
    }
    key = rng.choice(list(edits))
    values[key] = rng.choice(edits[key])
    (folder / CONFIG).write_text(json.dumps(values), encoding="utf-8")
    return f"{key} = {values[key]!r}"


def _bytes(folder: Path, rng: random.Random) -> str:
    path = folder / rng.choice((WEIGHTS, CONFIG))
    data = bytearray(path.read_bytes())
    how = rng.choice(("cut", "one byte changed", "emptied", "removed"))
    if how == "cut":
        data = data[: rng.randrange(len(data))]
    elif how == "one byte changed":
        data[rng.randrange(min(len(data), 600))] ^= 1 << rng.randrange(8)
    elif how == "emptied":
        data = bytearray()
    path.write_bytes(data)
    if how == "removed":
        path.unlink()
    return f"{path.name} {how}"
