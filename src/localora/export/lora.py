"""Exact export to plain LoRA, in the form that PEFT, vLLM, llama.cpp, Ollama and SGLang agree on.

Shape legend
    A   (R, n), B (m, R): dense factors of a layer      R   its rank: r_g + K r_l

The contract: `peft_type` LORA, one integer rank for all layers with `lora_alpha` equal to it, so that the scale is 1 in
every engine's formula, the adapter's own scale folded into B, explicit target modules, no bias, no patterns. Layers
are padded with zeros to one rank on a grid that engines compile kernels for.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from localora.errors import AdapterError
from localora.export.sources import PEFT_PREFIX, WEIGHTS, Adapter, read_folder, read_model
from localora.export.truncate import truncate_factors
from localora.placement.thin import relative_difference

RANK_GRID = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the folder.
        rank: the one rank of all layers, on the grid.
        kept_rank: the largest rank of any layer before it was padded to the grid.
        exact_rank: the largest rank any layer needs without truncation.
        layers: number of layers.
        max_error: largest relative Frobenius difference between a layer's dW and the file's, read back.
        bf16_error: the same if the file's factors were rounded to bfloat16, as most engines load them.
    """

    path: Path
    rank: int
    kept_rank: int
    exact_rank: int
    layers: int
    max_error: float
    bf16_error: float

    def __str__(self) -> str:
        truncated = f"truncated from rank {self.exact_rank} to {self.kept_rank}"
        kind = "exact" if self.kept_rank == self.exact_rank else truncated
        return (
            f"plain LoRA, rank {self.rank} ({kind}), {self.layers} layers: relative error of dW {self.max_error:.1e}, "
            f"in bfloat16 {self.bf16_error:.1e} -> {self.path}"
        )


def export_lora(
    model_or_folder: nn.Module | str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    adapter_name: str = "default",
) -> ExportReport:
    """Write an adapter as plain LoRA; anything that loads LoRA can then use it, without localora.

    Args:
        model_or_folder: a model with the adapter, or a folder written by its `save_pretrained` (no base model needed).
        out: the folder to write; created if it does not exist.
        rank: truncate to this rank by SVD instead of exporting exactly; the report gives the error it causes.
        adapter_name: which adapter of a model.

    Raises:
        UnplacedAdapterError: the adapter was never placed.
        ValueError: not a localora adapter, a rank below 1, or `out` is the adapter's own folder.
        PlacementError: damaged or missing tensors.
    """
    if rank is not None and rank < 1:
        raise AdapterError(f"the rank to truncate to must be at least 1, got {rank}")
    out = Path(out)
    if isinstance(model_or_folder, nn.Module):
        adapter = read_model(model_or_folder, adapter_name)
    else:
        folder = Path(model_or_folder)
        if out.resolve() == folder.resolve():
            raise AdapterError(
                f"{out} is the adapter's own folder; export to another one, or the adapter would be lost"
            )
        adapter = read_folder(folder)

    exact_rank = max(A.shape[0] for A, _ in adapter.factors.values())
    kept = {
        name: truncate_factors(A, B, rank)[:2] if rank is not None and rank < A.shape[0] else (A, B)
        for name, (A, B) in adapter.factors.items()
    }
    kept_rank = max(A.shape[0] for A, _ in kept.values())
    padded_rank = _on_grid(kept_rank)
    if padded_rank > RANK_GRID[-1]:
        warnings.warn(
            f"the exact export has rank {padded_rank}, and serving engines stop at {RANK_GRID[-1]}; "
            f"export with rank={RANK_GRID[-1]} or less to truncate by SVD",
            stacklevel=2,
        )
    if adapter.other_tensors:
        warnings.warn(
            "the adapter has modules_to_save; PEFT loads them from the export, but serving engines refuse them",
            stacklevel=2,
        )
    tensors = {key: value.contiguous() for key, value in adapter.other_tensors.items()}
    for name, (A, B) in kept.items():
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = _pad(A, padded_rank, dim=0)
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = _pad(B, padded_rank, dim=1)
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    _write_config(adapter, padded_rank, out)
    return _verified(adapter, out, padded_rank, kept_rank, exact_rank)


def _on_grid(rank: int) -> int:
    return next((step for step in RANK_GRID if step >= rank), rank)


def _pad(factor: Tensor, rank: int, dim: int) -> Tensor:
    shape = list(factor.shape)
    shape[dim] = rank - shape[dim]
    return torch.cat([factor, factor.new_zeros(shape)], dim=dim).contiguous()


def _write_config(adapter: Adapter, rank: int, out: Path) -> None:
    names = sorted(adapter.factors)
    suffixes = sorted({name.rpartition(".")[2] for name in names})
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=suffixes if adapter.complete_suffixes else names,
        bias="none",
        fan_in_fan_out=adapter.conv1d,
        task_type=adapter.config.task_type,
        modules_to_save=adapter.config.modules_to_save,
        base_model_name_or_path=adapter.config.base_model_name_or_path,
        revision=adapter.config.revision,
        inference_mode=True,
    )
    config.save_pretrained(str(out))
    path = out / "adapter_config.json"
    saved = json.loads(path.read_text())
    saved["target_modules"] = sorted(saved["target_modules"])  # PEFT writes a set in any order
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")


def _verified(adapter: Adapter, out: Path, rank: int, kept_rank: int, exact_rank: int) -> ExportReport:
    written = load_file(out / WEIGHTS)
    errors, bf16_errors = [], []
    for name, (A, B) in adapter.factors.items():
        A_file = written[f"{PEFT_PREFIX}{name}.lora_A.weight"]
        B_file = written[f"{PEFT_PREFIX}{name}.lora_B.weight"]
        errors.append(relative_difference(A, B, A_file, B_file))
        bf16_errors.append(relative_difference(A, B, A_file.bfloat16(), B_file.bfloat16()))
    return ExportReport(out, rank, kept_rank, exact_rank, len(adapter.factors), max(errors), max(bf16_errors))
