"""Export the adapter as plain LoRA, and show with stock PEFT that both give the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from localora import export_lora
from localora.data.batches import Encoded


def export_and_verify(model: PeftModel, probe: Encoded, adapter: Path, out: Path) -> dict[str, Any]:
    """Write the plain-LoRA copy to `out` and compare logits on one token sequence.

    Takes the adapter off `model`: afterwards it is the base model again, and `model` must not be used.

    Returns:
        What the run record keeps: the export's rank and size, and `logit_error`, the largest difference relative to
        the largest logit, in the base model's own precision.
    """
    report = export_lora(adapter, out)
    ours = _logits(model, probe)
    stock = PeftModel.from_pretrained(model.unload(), str(out))
    theirs = _logits(stock, probe)
    error = ((ours - theirs).abs().max() / ours.abs().max()).item()
    return {"rank": report.rank, "folder": out.name, "logit_error": error, "dtype": str(stock.dtype).split(".")[-1]}


@torch.no_grad()
def _logits(model: nn.Module, probe: Encoded) -> Tensor:
    model.eval()
    device = next(model.parameters()).device
    output = model(input_ids=torch.tensor([probe["input_ids"]], device=device))
    return output.logits.float()
