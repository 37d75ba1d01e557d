"""Export the adapter as plain LoRA, and show with stock PEFT that both give the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from localora import export_lora
from localora.lab.data.batches import Encoded

DELTA_TOLERANCE = 1e-5
LOGIT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}  # rounding adds up over the layers


def export_and_verify(model: PeftModel, probe: Encoded, adapter: Path, out: Path) -> dict[str, Any]:
    """Write the plain-LoRA copy to `out` and compare logits on one token sequence.

    Takes the adapter off `model`: afterwards it is the base model again, and `model` must not be used.

    Returns:
        What the run record keeps: the export's rank; `delta_error`, the largest relative difference of a layer's dW;
        `logit_error`, the largest difference relative to the largest logit, in the base model's own precision (dtype);
        and `verified`, whether both are within what that precision allows.
    """
    report = export_lora(adapter, out, overwrite=True)  # a resumed run may have been cut after it
    ours = _logits(model, probe)
    stock = PeftModel.from_pretrained(model.unload(), str(out))
    theirs = _logits(stock, probe)
    error = ((ours.float() - theirs.float()).abs().max() / ours.abs().max()).item()
    return {
        "folder": out.name,
        "rank": report.rank,
        "delta_error": report.max_error,
        "logit_error": error,
        "dtype": str(ours.dtype).removeprefix("torch."),
        "verified": report.max_error < DELTA_TOLERANCE and error < LOGIT_TOLERANCE[ours.dtype],
    }


@torch.no_grad()
def _logits(model: nn.Module, probe: Encoded) -> Tensor:
    model.eval()
    device = next(model.parameters()).device
    output = model(input_ids=torch.tensor([probe["input_ids"]], device=device))
    return output.logits
