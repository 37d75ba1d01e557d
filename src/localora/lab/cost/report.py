"""What predict_cost returns, and how it prints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CostReport:
    """The cost of one adapter on one model; all sizes in bytes."""

    model: str
    method: str
    r: int
    tokens: int  # in a calibration batch
    layers: int  # adapted matrices
    base_parameters: int  # of the frozen model
    base_bytes: int
    trainable: int  # parameters the optimizer sees, `modules_to_save` included
    lora_trainable: int  # what PEFT's LoRA of the same rank trains on the same matrices
    stored: int  # of the adapter in the end: what trains, and the frozen terms of all scheduled events
    exact_rank: int  # the largest rank a matrix's update can have as plain LoRA
    exported_rank: int  # that on the export's grid
    adapter_bytes: int  # the adapter file, labels included
    export_bytes: int  # the file of the exact plain-LoRA export
    gradient_bytes: int
    optimizer_bytes: int  # Adam's two float32 moments
    calibration_kept: int  # signals of all layers, in CPU memory
    calibration_working: int  # the most that observing one layer takes on the model's device

    def __str__(self) -> str:
        share = self.trainable / self.base_parameters
        calibration = (
            f"{_size(self.calibration_kept)} kept + {_size(self.calibration_working)} for a layer at a time"
            if self.calibration_kept
            else "none"
        )
        rows = [
            ("base model", f"{self.base_parameters:,} parameters, {_size(self.base_bytes)}"),
            ("adapted matrices", f"{self.layers:,}"),
            (
                "trainable parameters",
                f"{self.trainable:,} ({share:.2%} of the base; LoRA r {self.r}: {self.lora_trainable:,})",
            ),
            ("stored parameters", f"{self.stored:,}"),
            ("exported rank", f"{self.exported_rank} (exact: {self.exact_rank})"),
            ("adapter file", _size(self.adapter_bytes)),
            ("plain-LoRA export", _size(self.export_bytes)),
            ("gradients", _size(self.gradient_bytes)),
            ("optimizer (Adam)", _size(self.optimizer_bytes)),
            (f"calibration, {self.tokens:,} tokens a batch", calibration),
        ]
        width = max(len(what) for what, _ in rows)
        return "\n".join([f"{self.method} r {self.r} on {self.model}", *(f"  {a:<{width}}  {b}" for a, b in rows)])


def _size(count: int) -> str:
    """Bytes as people read them, in powers of 1024."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
