"""The size of a safetensors file before it is written, to the byte.

Layout: 8 bytes that hold the header's length, the header as compact JSON padded with spaces to a multiple of 8, data.
The order of tensors decides the offsets in the header and so its length: widest type first, then by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod

import torch

Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

# safetensors' name of each type; its own order of types breaks ties between types of equal width.
TYPE_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
TYPE_ORDER = list(TYPE_NAMES)
METADATA = {"format": "pt"}


def safetensors_bytes(tensors: Shapes) -> int:
    """The bytes `safetensors.torch.save_file` writes for tensors of these types and shapes, as PEFT calls it."""
    header: dict[str, object] = {"__metadata__": METADATA}
    offset = 0
    order = sorted(tensors, key=lambda name: (-TYPE_ORDER.index(tensors[name][0]), name))
    for name in order:
        dtype, shape = tensors[name]
        end = offset + prod(shape) * dtype.itemsize
        header[name] = {"dtype": TYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + offset
