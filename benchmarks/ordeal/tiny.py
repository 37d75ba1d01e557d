"""A model and recipes so small that a run takes a second, and processes that are forked with everything imported."""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from localora import export_lora
from localora.errors import LocaloraError
from localora.lab.recipe.file import validate_recipe
from localora.lab.run.train import train

REFUSED = 2  # exit code of a process that was told what is wrong
STEPS = 12


def save_model(folder: Path) -> Path:
    """A random Llama with a byte tokenizer, as a folder that `from_pretrained` loads."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(["<s>", "</s>", *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,  # activations of ordinary size, so that a few steps teach it something
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe(model: Path, out: Path) -> dict[str, Any]:
    """CPS-LoRA with two events and a checkpoint every two steps, so that kills meet all of them."""
    return {
        "model": {"name": str(model), "dtype": "float32"},
        "data": {"task": "arithmetic", "train_size": 24, "validation_size": 6, "test_size": 6},
        "method": {
            "name": "cps-lora", "r": 4, "clusters": 2, "target_modules": ["q_proj", "down_proj"],
            "calibration_steps": 2, "repartition": [0.25, 0.5],
        },
        "training": {"steps": STEPS, "batch_size": 2, "learning_rate": 1e-2, "checkpoint_every": 2},
        "evaluation": {"examples": 4, "curve_examples": 4, "curve_points": 3, "batch_size": 4, "max_new_tokens": 4},
        "output": {"folder": str(out), "plots": False},
    }  # fmt: skip


def forks() -> ForkServerContext:
    """Processes that cost no imports: forked from one that has made them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.ordeal.tiny", "benchmarks.ordeal.comparisons"])
    return context


def train_in(values: dict[str, Any], said: str, resume: bool, overwrite: bool) -> None:
    """What a forked process runs; what it was refused for, or died of, is in the file `said`."""
    as_forked(said, lambda: train(validate_recipe(values), resume=resume, overwrite=overwrite, console=console()))


def export_in(adapter: str, out: str, said: str) -> None:
    as_forked(said, lambda: export_lora(adapter, out, overwrite=True))


def end(process: ForkServerProcess, seconds: float | None = None) -> int | None:
    """Its exit code; with `seconds`, None when it still runs after them."""
    process.join(seconds)
    return process.exitcode


def as_forked(said: str, work: Callable[[], Any]) -> None:
    """Do the work with one thread, say nothing, and exit: with 0, REFUSED, or 1 for an error that is no sentence."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    torch.set_num_threads(1)
    try:
        work()
    except LocaloraError as error:
        Path(said).write_text(str(error), encoding="utf-8")
        os._exit(REFUSED)
    except BaseException as error:
        Path(said).write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        os._exit(1)
    os._exit(0)


def console() -> Console:
    return Console(file=io.StringIO())
