"""python -m benchmarks.real_updates --data FOLDER --out FOLDER [--set math] [--steps 300] [--layers PATTERN ...]

Fine-tunes all of SmolLM2-135M, then puts its update under the microscope. Both halves resume.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from benchmarks.real_updates.data import SETS, examples
from benchmarks.real_updates.full_finetuning import fine_tune

from localora.lab.data.batches import encode_examples
from localora.lab.inspect.microscope import inspect_delta
from localora.lab.model.base import load_base_model

# One early, two middle and one late layer, all seven modules of each.
LAYERS = tuple(f"*layers.{number}.*" for number in (2, 11, 20, 28))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets: math/, commonsense/, code/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", choices=SETS, default="math")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4, help="sequences a step")
    parser.add_argument("--rate", type=float, default=5e-5, help="learning rate")
    parser.add_argument("--rank", type=int, default=16, help="the microscope's budget")
    parser.add_argument("--layers", nargs="*", default=list(LAYERS))
    parser.add_argument("--train-only", action="store_true")
    chosen = parser.parse_args()

    folder = chosen.out / chosen.set
    base, tuned = chosen.out / "base", folder / "tuned"
    if not tuned.exists():
        model, tokenizer = load_base_model("smollm2-135m", torch.float32)
        if not base.exists():
            model.save_pretrained(str(base))
        drawn = examples(chosen.set, chosen.data, chosen.steps * chosen.batch, seed=0)
        encoded = encode_examples(drawn, tokenizer, max_length=256)
        pad = int(tokenizer.pad_token_id)
        history = fine_tune(model, encoded, pad, folder / "training", chosen.steps, chosen.batch, chosen.rate)
        (folder / "history.json").write_text(json.dumps(history, indent=1))
        model.save_pretrained(str(tuned))
    if chosen.train_only:
        return
    report = inspect_delta(
        tuned,
        base=base,
        out=folder / "inspected",
        rank=chosen.rank,
        layers=chosen.layers,
        progress=lambda done, total: print(f"{done} of {total} layers", flush=True),
    )
    print(report)


main()
