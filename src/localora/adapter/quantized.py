"""What a quantized base needs before an adapter can sit on it."""

from __future__ import annotations

from torch import nn

from localora.errors import LayerError


def keep_readable(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew on a CPU, as it does at the first pass in eval mode.

    Through a weight packed so no gradient flows, and it can no longer be read (bitsandbytes 0.50, on processors with
    AVX512-BF16): training after an evaluation would go wrong without a word. Of all layers, since gradients flow
    through those without an adapter too.

    Raises:
        LayerError: one is packed already.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise LayerError(
                f"the 4-bit weight of {name} was packed for inference on this CPU when the model ran in eval mode, and "
                "bitsandbytes can neither train through it nor give it back. Load the model again, and add the adapter "
                "before the model is run"
            )
        module.support_avx512bf16_for_cpu = False
