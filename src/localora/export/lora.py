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
from typing import cast

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from localora.adapter.adapter_file import CONFIG, WEIGHTS
from localora.adapter.card import hub_id, training_rows, write_export_card
from localora.adapter.saved_layers import PEFT_PREFIX
from localora.arguments import check_count, check_kind, check_path
from localora.export.engines import RANK_GRID, on_grid, write_modelfile
from localora.export.experts import expert_tensors, factors_in_file, linear_layers
from localora.export.folder import ExportError, check_reachable, check_target, written_whole
from localora.export.gguf_file import check_gguf, write_gguf
from localora.export.sources import Adapter, read_folder, read_model
from localora.placement.thin import padded, relative_difference, truncate_factors


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the folder.
        rank: the one rank `r` of the file, which all layers are padded to with zeros.
        kept_rank: the largest rank of any layer without that padding.
        exact_rank: the largest rank of any layer without padding and without truncation.
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
        return (
            f"plain LoRA of {_rank_in_words(self.rank, self.kept_rank, self.exact_rank)}, {self.layers} layers: "
            f"relative error of dW {self.max_error:.1e}, in bfloat16 {self.bf16_error:.1e} -> {self.path}"
        )


def _rank_in_words(rank: int, kept_rank: int, exact_rank: int) -> str:
    kind = "exact" if kept_rank == exact_rank else f"truncated from {exact_rank}"
    return f"rank {kept_rank} ({kind})" + ("" if rank == kept_rank else f", zero-padded to {rank}")


def export_lora(
    model_or_folder: nn.Module | str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    adapter_name: str = "default",
    overwrite: bool = False,
    gguf: bool = False,
    modelfile: str | None = None,
    base: str | Path | None = None,
) -> ExportReport:
    """Write an adapter as plain LoRA; anything that loads LoRA can then use it, without localora.

    Args:
        model_or_folder: a model with the adapter, or a folder written by its `save_pretrained` (no base model needed).
        out: the folder to write; it must not exist, or be empty.
        rank: truncate to this rank by SVD instead of exporting exactly; the report gives the error it causes.
        adapter_name: which adapter of a model.
        overwrite: replace an earlier export in `out`. The old one stays until the new one is complete.
        gguf: also write `adapter.gguf`, for llama.cpp and Ollama; needs the base model's config, not its weights.
        modelfile: also write Ollama's Modelfile, and the GGUF file it names, for the base model that Ollama knows by
            this name, or for a file or folder of it.
        base: folder or Hub id of the base model, if not what the adapter's config names. Only the GGUF file needs it.

    Raises:
        UnplacedAdapterError: the adapter was never placed.
        ExportError: factors that are not finite; `out` holds something, is the adapter's own folder, or cannot be
            written (a full disk), in which case it is as it was; a GGUF file of an architecture that has none.
        ArgumentError: an argument of another kind, or a rank below 1.
        AdapterError: not a localora adapter.
        PlacementError: damaged or missing tensors.
    """
    if not isinstance(model_or_folder, nn.Module):
        check_path("export_lora", "the model or folder of an adapter", model_or_folder)
    check_path("export_lora", "out", out)
    check_kind("export_lora", "overwrite", overwrite, bool, "True or False")
    if rank is not None:
        check_count("export_lora", "rank", rank)
    if base is not None:
        check_path("export_lora", "base", base)
    check_kind("export_lora", "modelfile", modelfile, (str, type(None)), "the name of a model as Ollama knows it")
    if modelfile is not None and not modelfile.strip():
        raise ExportError("modelfile is empty; give the name by which Ollama knows the base model")
    if modelfile is not None and len(modelfile.splitlines()) > 1:  # what follows would be instructions of the file
        raise ExportError("modelfile has several lines; give the name by which Ollama knows the base model")
    out = Path(out)
    check_reachable(out)
    if not isinstance(model_or_folder, nn.Module) and out.resolve() == Path(model_or_folder).resolve():
        raise ExportError(f"{out} is the adapter's own folder; export to another one, or the adapter would be lost")
    check_target(out, overwrite)
    training: list[str] = []
    if isinstance(model_or_folder, nn.Module):
        adapter = read_model(model_or_folder, adapter_name)
    else:
        adapter = read_folder(Path(model_or_folder))
        training = training_rows(Path(model_or_folder))
    _check_finite(adapter)
    base_config = _base_config(model_or_folder, base, adapter) if gguf or modelfile else None

    kept = {
        name: truncate_factors(A, B, rank)[:2] if rank is not None and rank < A.shape[0] else (A, B)
        for name, (A, B) in adapter.factors.items()
    }
    exact_rank, kept_rank = _largest_rank(adapter.factors), _largest_rank(kept)
    file_rank = on_grid(kept_rank)
    _warn_of_limits(adapter, file_rank)
    with written_whole(out, overwrite) as folder:
        save_file(_tensors(adapter, kept, file_rank), folder / WEIGHTS, metadata={"format": "pt"})
        _write_config(adapter, file_rank, folder)
        max_error, bf16_error = _errors(adapter, folder)
        write_export_card(folder, adapter.config, _rank_in_words(file_rank, kept_rank, exact_rank), training)
        if base_config is not None:
            write_gguf(folder, base_config, hub_id(adapter.config.base_model_name_or_path))
        if modelfile is not None:
            write_modelfile(folder, modelfile)
    return ExportReport(out, file_rank, kept_rank, exact_rank, len(adapter.factors), max_error, bf16_error)


def _largest_rank(factors: dict[str, tuple[Tensor, Tensor]]) -> int:
    return max(A.shape[0] for A, _ in factors.values())


def _warn_of_limits(adapter: Adapter, rank: int) -> None:
    """Of what localora.export.engines would find, the two that take another export."""
    if rank > RANK_GRID[-1]:
        warnings.warn(
            f"the exact export has rank {rank}, and vLLM stops at {RANK_GRID[-1]}; export with --rank {RANK_GRID[-1]} "
            f"(rank={RANK_GRID[-1]}) or less to truncate by SVD",
            stacklevel=3,
        )
    if len(linear_layers(adapter.config, adapter.factors)) < len(adapter.factors):
        warnings.warn(
            "the adapter has updates of stacked experts; PEFT loads them from the export (target_parameters), but "
            "serving engines were not tried with them. merge_and_unload() and save the model for those",
            stacklevel=3,
        )
    if adapter.other_tensors:
        warnings.warn(
            "the adapter has modules_to_save; PEFT loads them from the export, but serving engines refuse them",
            stacklevel=3,
        )


def _tensors(adapter: Adapter, kept: dict[str, tuple[Tensor, Tensor]], rank: int) -> dict[str, Tensor]:
    tensors = {key: value.contiguous() for key, value in adapter.other_tensors.items()}
    factors = {name: padded(A, B, rank) for name, (A, B) in kept.items()}
    for name in linear_layers(adapter.config, factors):
        for side, factor in zip("AB", factors[name], strict=True):
            tensors[f"{PEFT_PREFIX}{name}.lora_{side}.weight"] = factor.contiguous()
    experts = expert_tensors(adapter.config, factors)
    return tensors | {f"{PEFT_PREFIX}{key}": value for key, value in experts.items()}


def _base_config(source: nn.Module | str | Path, base: str | Path | None, adapter: Adapter) -> PretrainedConfig:
    """The base model's config: of the model in memory, or read from where the base model is."""
    if isinstance(source, PeftModel) and base is None:
        config = cast(PretrainedConfig, source.get_base_model().config)
    else:
        name = str(base or adapter.config.base_model_name_or_path or "")
        try:
            config = AutoConfig.from_pretrained(name)
        except Exception as error:  # a folder of a stranger's may hold anything, and transformers raises as many kinds
            reason = str(error).strip().split("\n")[0]
            raise ExportError(
                f"there is no config of the base model {name!r}, which GGUF needs: {reason}\n"
                "If the base model is elsewhere, give it with --base (base=...)"
            ) from error
    check_gguf(config)
    return config


def _check_finite(adapter: Adapter) -> None:
    """NaN compares as neither larger nor smaller, so a check of errors alone would call such an adapter exact."""
    named = [(f"the factors of {name}", factor) for name, pair in adapter.factors.items() for factor in pair]
    for what, tensor in (*named, *adapter.other_tensors.items()):
        if not tensor.isfinite().all():
            raise ExportError(
                f"{what} hold NaN or infinite numbers: training has diverged. Export an earlier checkpoint, or train "
                "again at a lower learning rate"
            )


def _write_config(adapter: Adapter, rank: int, out: Path) -> None:
    names = sorted(linear_layers(adapter.config, adapter.factors))
    suffixes = sorted({name.rpartition(".")[2] for name in names})
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=suffixes if adapter.complete_suffixes else names,
        target_parameters=adapter.config.target_parameters,
        bias="none",
        fan_in_fan_out=adapter.conv1d,
        task_type=adapter.config.task_type,
        modules_to_save=adapter.config.modules_to_save,
        base_model_name_or_path=adapter.config.base_model_name_or_path,
        revision=adapter.config.revision,
        inference_mode=True,
    )
    config.save_pretrained(str(out))
    path = out / CONFIG
    saved = json.loads(path.read_text())
    saved["target_modules"] = sorted(saved["target_modules"])  # PEFT writes a set in any order
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")


def _errors(adapter: Adapter, folder: Path) -> tuple[float, float]:
    """The largest relative difference of a layer's dW from the file's, read back; and if that were bfloat16."""
    written = {key.removeprefix(PEFT_PREFIX): value for key, value in load_file(folder / WEIGHTS).items()}
    errors, bf16_errors = [], []
    for name, (A, B) in adapter.factors.items():
        A_file, B_file = factors_in_file(adapter.config, written, name, adapter.factors)
        errors.append(relative_difference(A, B, A_file, B_file))
        bf16_errors.append(relative_difference(A, B, A_file.bfloat16(), B_file.bfloat16()))
    worst = torch.tensor([errors, bf16_errors], dtype=torch.float64).amax(dim=1)  # NaN if any is, unlike max()
    if not worst.isfinite().all():
        raise ExportError("the factors are too large to be multiplied: their product is not finite")
    return worst[0].item(), worst[1].item()
