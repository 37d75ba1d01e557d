"""llama.cpp as a judge: base models as GGUF files, written here from transformers models, and its log-probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

# model_type of transformers: llama.cpp's architecture, whether rows of q and k are paired, what is added to norms.
# Kept apart from the table of the library, so that a mistake there is not repeated here.
KINDS = {
    "llama": (gguf.MODEL_ARCH.LLAMA, True, 0.0),
    "mistral": (gguf.MODEL_ARCH.LLAMA, True, 0.0),
    "qwen2": (gguf.MODEL_ARCH.QWEN2, False, 0.0),
    "qwen3": (gguf.MODEL_ARCH.QWEN3, False, 0.0),
    "gemma": (gguf.MODEL_ARCH.GEMMA, False, 1.0),
    "gemma2": (gguf.MODEL_ARCH.GEMMA2, False, 1.0),
    "gemma3_text": (gguf.MODEL_ARCH.GEMMA3, False, 1.0),
}


def write_base(model: PreTrainedModel, path: Path) -> Path:
    """The whole model in float32. Tokens have made-up names: prompts are given as ids."""
    config = model.config
    arch, paired, norm_offset = KINDS[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_rope(writer, config, arch, head_dim)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_vocabulary(writer, config)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    state = model.state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    for key, value in state.items():
        array = value.detach().float().numpy()
        if key.endswith("norm.weight"):
            array = array + np.float32(norm_offset)
        if paired and key.endswith(("q_proj.weight", "k_proj.weight")):
            array = _interleaved(array, heads if "q_proj" in key else kv_heads)
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert name is not None, key
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_rope(writer: gguf.GGUFWriter, config: Any, arch: Any, head_dim: int) -> None:
    rope = config.rope_parameters
    if config.model_type == "gemma3_text":  # its layers of full attention turn at another rate than those of a window
        writer.add_rope_freq_base(rope["full_attention"]["rope_theta"])
        writer.add_sliding_window(config.sliding_window)
        return
    writer.add_rope_freq_base(rope["rope_theta"])
    if arch == gguf.MODEL_ARCH.LLAMA:
        writer.add_rope_dimension_count(head_dim)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_sliding_window(config.sliding_window)


def _add_vocabulary(writer: gguf.GGUFWriter, config: Any) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = [*tokens, *(f"▁t{i}" for i in range(config.vocab_size))][: config.vocab_size]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


def _interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows i and i + d/2 of each head become neighbours; by index, not by the library's reshaping."""
    d = rows.shape[0] // heads
    order = [head * d + i + half * (d // 2) for head in range(heads) for i in range(d // 2) for half in (0, 1)]
    return np.ascontiguousarray(rows[order])


class LlamaCpp:
    """A server of llama.cpp in this process, on one base model and at most one adapter."""

    def __init__(self, base: Path, adapter: Path | None = None, vocabulary: int = 64) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(base)
        if adapter is not None:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 256, 1, False, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # f16 unless asked
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)
        self.vocabulary = vocabulary

    def log_probabilities(self, tokens: list[int]) -> Tensor:
        """Of the token after `tokens`, float64 `(vocabulary,)`."""
        answer = self.server.handle_completions(
            {"prompt": tokens, "n_predict": 1, "n_probs": self.vocabulary, "temperature": 0.0, "cache_prompt": False}
        )
        result = torch.full((self.vocabulary,), float("-inf"), dtype=torch.float64)
        for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            result[entry["id"]] = entry["logprob"]
        return result
