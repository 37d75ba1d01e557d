"""Two full checkpoints, base and fine-tuned, read tensor by tensor: dW = W_tuned - W_base.

Only headers are read up front. One pair of tensors is in memory at a time.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from localora.lab.inspect import InspectionError

INDEX = ".safetensors.index.json"
TABLES = ("embed", "wte", "wpe", "lm_head")  # looked-up or tied, and seldom adapted: left out unless asked for
READABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Checkpoint:
    """A folder of safetensors, single or sharded with an index: names, shapes, and tensors on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of = _locate(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(set(self._file_of.values())):
            with _opened(path) as file:
                held = set(file.keys())
                for name in (name for name, where in self._file_of.items() if where == path):
                    if name not in held:
                        raise InspectionError(f"{path} lacks {name}, which the index of {folder} puts there")
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        with _opened(self._file_of[name]) as file:
            tensor: Tensor = file.get_tensor(name)
        if tensor.dtype not in READABLE:
            raise InspectionError(f"{name} in {self.folder} is {tensor.dtype}; save the model dequantized first")
        return tensor


class CheckpointPair:
    """The 2-D weights that base and fine-tuned model share.

    Attributes:
        names: layers, i.e. names of 2-D tensors without ".weight", in the order of the files.
        tables: those of them that are embedding tables or output heads.
        others: what is neither 1-D nor 2-D, with its shape.

    Raises:
        InspectionError: a 2-D weight that one of them lacks, or that has another shape.
    """

    def __init__(self, base: Path, tuned: Path) -> None:
        self._base, self._tuned = Checkpoint(base), Checkpoint(tuned)
        mine, theirs = (set(_matrices(checkpoint)) for checkpoint in (self._base, self._tuned))
        self.others = {n: s for n, s in self._tuned.shapes.items() if len(s) > 2}
        self.names = [name for name in _matrices(self._tuned) if name in mine]
        self.tables = [name for name in self.names if is_table(name)]
        for lacking, names in ((tuned, mine - theirs), (base, theirs - mine)):
            # a tied head is stored by some and left out by others
            missing = sorted(name for name in names if not is_table(name))
            if missing:
                shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
                raise InspectionError(f"{lacking} lacks {shown}; are they checkpoints of the same model class?")
        if not self.names:
            raise InspectionError(f"{base} and {tuned} share no 2-D weights")

    def check_shape(self, name: str) -> tuple[int, int]:
        """The shape of a layer, without reading it."""
        base, tuned = (checkpoint.shapes[_key(checkpoint, name)] for checkpoint in (self._base, self._tuned))
        if base != tuned:
            raise InspectionError(f"{name} is {base} in the base and {tuned} in the fine-tuned model; they must agree")
        return tuned[0], tuned[1]

    def delta(self, name: str) -> Tensor:
        """W_tuned - W_base of a layer `(m, n)`, subtracted in float32 or wider."""
        self.check_shape(name)
        tuned = self._tuned.tensor(_key(self._tuned, name))
        tuned = tuned if tuned.dtype == torch.float64 else tuned.float()
        tuned -= self._base.tensor(_key(self._base, name))
        return tuned


def is_table(name: str) -> bool:
    return any(part in name for part in TABLES)


def _matrices(checkpoint: Checkpoint) -> list[str]:
    return [name.removesuffix(".weight") for name, shape in checkpoint.shapes.items() if len(shape) == 2]


def _key(checkpoint: Checkpoint, name: str) -> str:
    return f"{name}.weight" if f"{name}.weight" in checkpoint.shapes else name


def _locate(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index where there is one, else from all safetensors of the folder."""
    if not folder.is_dir():
        raise InspectionError(f"{folder} is no folder")
    indices = sorted(folder.glob(f"*{INDEX}"))
    if len(indices) > 1:
        raise InspectionError(f"{folder} has several indices, {', '.join(path.name for path in indices)}; keep one")
    if indices:
        where = {name: folder / file for name, file in _weight_map(indices[0]).items()}
        missing = sorted({path.name for path in where.values() if not path.is_file()})
        if missing:
            raise InspectionError(f"{folder} lacks {', '.join(missing)}, which {indices[0].name} names")
        return where
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InspectionError(f"{folder} holds no safetensors; save the model with save_pretrained")
    located: dict[str, Path] = {}
    for path in files:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                if name in located:
                    both = f"{located[name].name} and {path.name}"
                    raise InspectionError(f"{name} is in both {both} of {folder}; keep one")
                located[name] = path
    return located


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_bytes())["weight_map"]
        pairs = list(found.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InspectionError(f"{index} is no index of safetensors ({error!r}); save the model anew") from error
    for name, file in pairs:
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise InspectionError(f"{index} puts {name} in {file!r}, which is no safetensors file of its own folder")
    return dict(pairs)


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(str(path), framework="pt")
    except SafetensorError as error:
        raise InspectionError(f"{path} is not a readable safetensors file: {error}") from error
