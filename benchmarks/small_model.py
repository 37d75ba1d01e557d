"""`python -m benchmarks.small_model`: a language model of half a million weights, for comparisons with many runs.

A Llama of two layers, 128 wide (with --medium four of 256, 3.5 million weights), with a tokenizer of 512 byte pairs. It
is trained in full, from random weights, on one generated task alone, and left in runs/small-model/trained/model.
Adapting it to something else asks for many new directions at once: more rank is worth having there, so that methods
that place rank differently can be told apart.

    --task arithmetic    two-step problems; adapted to short Python functions (plans/small-model*.yaml). 4 minutes
    --task by-heart      1,000 facts, then 500 others (benchmarks/when_it_pays.py); runs/small-by-heart. 3 minutes
    --task by-heart --medium    the same with 3.5 million weights; runs/medium-by-heart. 14 minutes of one core
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from localora.lab.data.generated.registry import TASKS, generate_task
from localora.lab.recipe.file import validate_recipe
from localora.lab.recipe.schema import Recipe
from localora.lab.run.train import train

VOCABULARY = 512
SIZES = {  # (width, inner width, layers, heads)
    "small": (128, 384, 2, 4),
    "medium": (256, 768, 4, 8),
}
RECIPES: dict[str, Any] = {
    "arithmetic": {
        "ending": "model",
        "data": {"difficulty": 2, "train_size": 10_000, "validation_size": 200, "test_size": 200},
        "training": {"steps": 2000, "batch_size": 32},
    },
    "by-heart": {
        "ending": "by-heart",
        "data": {"difficulty": 1, "seed": 1, "train_size": 1000, "validation_size": 100, "test_size": 200},
        "training": {"steps": 2500, "batch_size": 64, "max_length": 64},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small_model", description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=RECIPES, default="arithmetic")
    parser.add_argument("--medium", action="store_true", help="3.5 million weights instead of half a million")
    parser.add_argument("--steps", type=int, help="of full training")
    parser.add_argument("--folder", type=Path, help="default runs/small-model, or runs/small-by-heart")
    arguments = parser.parse_args()
    size = "medium" if arguments.medium else "small"
    folder = arguments.folder or Path(f"runs/{size}-{RECIPES[arguments.task]['ending']}")
    untrained(folder / "untrained", size)
    trained = folder / "trained"
    record = train(recipe(folder / "untrained", trained, arguments.steps, arguments.task), overwrite=True)
    print(f"{trained / 'model'}: test loss {record.before.loss:.3f} -> {record.after.loss:.3f}")


def untrained(folder: Path, size: str = "small") -> None:
    """Tokenizer and random weights, the same on every call."""
    width, inner, layers, heads = SIZES[size]
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs of all generated tasks, so that none of them is spelled out letter by letter."""
    texts = []
    for task in sorted(TASKS):
        splits, _ = generate_task(task, 3, {"train": 2000}, seed=0)
        texts += [example.prompt + example.completion for example in splits["train"]]
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    pairs.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<pad>", "<end>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=pairs, pad_token="<pad>", eos_token="<end>")


def recipe(model: Path, folder: Path, steps: int | None = None, task: str = "arithmetic") -> Recipe:
    """Full training on that task alone."""
    keys = RECIPES[task]
    return validate_recipe(
        {
            "model": {"name": str(model)},
            "data": {"task": task, **keys["data"]},
            "method": {"name": "full"},
            "training": {"learning_rate": 3e-3, **keys["training"], **({"steps": steps} if steps else {})}
            | {"checkpoint_every": steps or keys["training"]["steps"]},
            "evaluation": {"examples": 200, "curve_examples": 100, "max_new_tokens": 32},
            "output": {"folder": str(folder)},
        }
    )


if __name__ == "__main__":
    main()
