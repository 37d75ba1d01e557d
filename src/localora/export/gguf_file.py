"""An exported folder of plain LoRA once more as one GGUF file, which llama.cpp and Ollama read.

Shape legend
    A   (R, n), B (m, R): the exported factors of a layer, scale folded in      d   numbers of a head, m = heads d

llama.cpp adds B A to the weight of the same name, so two things must be as in its own converter: the names, which come
from the maps of its `gguf` package, and the order of the rows of q and k. Llama's rotary embedding turns the pairs
(i, i + d/2) of a head in transformers and (2 i, 2 i + 1) in llama.cpp, whose files of the architecture "llama" hold the
rows of q and k in that other order; dW's rows are B's rows, so B alone is reordered.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import PretrainedConfig

from localora.adapter.adapter_file import WEIGHTS
from localora.adapter.saved_layers import PEFT_PREFIX
from localora.export.folder import ExportError

GGUF = "adapter.gguf"


FAMILIES = {  # `model_type` of transformers -> member of gguf.MODEL_ARCH
    "llama": "LLAMA",
    "mistral": "LLAMA",
    "qwen2": "QWEN2",
    "qwen3": "QWEN3",
    "gemma": "GEMMA",
    "gemma2": "GEMMA2",
    "gemma3_text": "GEMMA3",
}
PAIRED_ROWS = ("LLAMA",)  # whose rows of q and k are in another order


def check_gguf(config: PretrainedConfig) -> None:
    """Whether adapters of models of this config can be written as GGUF, before any work is done.

    Raises:
        ExportError: the package `gguf` is missing, or the architecture is not one whose files we have compared.
    """
    _gguf()
    if config.model_type not in FAMILIES:
        raise ExportError(
            f"a GGUF adapter for the architecture {config.model_type!r} is not supported; it is for "
            f"{', '.join(FAMILIES)}. Leave --gguf out: the folder of plain LoRA can be converted by llama.cpp's own "
            "convert_lora_to_gguf.py"
        )


def write_gguf(folder: Path, config: PretrainedConfig, base: str | None) -> Path:
    """Write `adapter.gguf`, in float32, from the plain LoRA in `folder`.

    Args:
        folder: as :func:`localora.export_lora` writes it: r equal to alpha.
        config: of the base model.
        base: its name, for the file's description.

    Raises:
        ExportError: as :func:`check_gguf`; a layer that llama.cpp's file does not hold, or that does not fit `config`.
    """
    check_gguf(config)
    gguf, family = _gguf(), FAMILIES[config.model_type]
    arch = gguf.MODEL_ARCH[family]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    factors = load_file(folder / WEIGHTS)
    layers = sorted({key.removesuffix(".lora_A.weight") for key in factors if key.endswith(".lora_A.weight")})
    path, rank = folder / GGUF, factors[f"{layers[0]}.lora_A.weight"].shape[0]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))  # so that llama.cpp's scale alpha / rank is 1
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if base:
        writer.add_description(f"LoRA adapter of {base}")
    for layer in layers:
        name = layer.removeprefix(PEFT_PREFIX)
        tensor = _tensor_name(names, name, config)
        A, B = factors[f"{layer}.lora_A.weight"].float(), factors[f"{layer}.lora_B.weight"].float()
        if family in PAIRED_ROWS and (heads := _heads(name, config)):
            B = _paired_rows(B, heads, name)
        writer.add_tensor(f"{tensor}.weight.lora_a", A.contiguous().numpy())
        writer.add_tensor(f"{tensor}.weight.lora_b", B.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ExportError("writing GGUF needs the package gguf: pip install 'localora[gguf]'") from error
    return gguf


def _tensor_name(names: Any, layer: str, config: PretrainedConfig) -> str:
    tensor = names.get_name(layer)
    if tensor is None:
        raise ExportError(
            f"llama.cpp's files of {config.model_type} models hold no matrix for the layer {layer}; is it the adapter "
            "of another model? If not, adapt other layers, or leave --gguf out"
        )
    if layer == "lm_head" and config.tie_word_embeddings:
        raise ExportError(
            "the adapter is on lm_head, which this model shares with its embedding, so that llama.cpp's files hold no "
            "matrix for it alone; leave lm_head out of target_modules, or export with --merged"
        )
    return str(tensor)


def _heads(layer: str, config: PretrainedConfig) -> int | None:
    """The number of heads that the rows of this layer are divided into; None if they are in transformers' order."""
    if layer.endswith("self_attn.q_proj"):
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if layer.endswith("self_attn.k_proj") else None


def _paired_rows(B_mR: Tensor, heads: int, layer: str) -> Tensor:
    """Row 2 i + h of each head is what was its row i + h d/2, h in {0, 1}."""
    m, R = B_mR.shape
    if m % (2 * heads):
        raise ExportError(f"{layer} has {m} rows, which {heads} heads do not divide; is the base model another one?")
    return B_mR.view(heads, 2, m // heads // 2, R).transpose(1, 2).reshape(m, R)
