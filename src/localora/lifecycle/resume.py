"""The state of a re-partition in a Trainer's checkpoint: one safetensors file for each process and adapter."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from localora.lifecycle.event import ScheduleError
from localora.lifecycle.passes import Layers
from localora.lifecycle.processes import failing_together, processes


def state_file(folder: Path, name: str) -> Path:
    """Where this process keeps the state of the adapter called `name`."""
    rank, _ = processes()
    return folder / f"localora_repartition_{name}_{rank}.safetensors"


def write_state(state: dict[str, Tensor], folder: Path, name: str) -> None:
    """Write a Repartitioner's `state_dict()` into a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, state_file(folder, name))


def read_state(folder: Path, name: str) -> dict[str, Tensor]:
    """The state that :func:`write_state` wrote.

    Raises:
        ScheduleError: there is none, or it is damaged.
    """
    path = state_file(folder, name)
    with failing_together():
        if not path.is_file():
            raise ScheduleError(
                f"training resumes, but {path} is missing, so its next re-partition would not be that of the run that "
                "was stopped. If the checkpoint lies elsewhere, pass LocalizationCallback(checkpoint=folder); if it "
                "was written without the callback, start anew"
            )
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ScheduleError(f"{path} is damaged ({error}); resume from an earlier checkpoint") from error


def check_state(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Check that a saved state fits the run that loads it; `expected` is the state of that run now.

    Raises:
        ScheduleError: it does not.
    """
    if state.keys() != expected.keys():
        key = min(state.keys() ^ expected.keys())
        what = "lacks" if key in expected else "has an unknown"
        raise ScheduleError(
            f"the saved state of the re-partition {what} {key!r}: the checkpoint is of another model or other settings"
        )
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise ScheduleError(
                f"the saved state of the re-partition has {key!r} of shape {tuple(state[key].shape)} instead of "
                f"{tuple(tensor.shape)}: the checkpoint is of another model or other settings"
            )
    if int(state["processes"]) != int(expected["processes"]):
        raise ScheduleError(
            f"the checkpoint is of {int(state['processes'])} processes, each with a gradient of its own; resume with "
            "as many, or set repartition_observe='event'"
        )
    if not torch.equal(state["fingerprint"], expected["fingerprint"]):
        raise ScheduleError(
            "the saved state of the re-partition belongs to other adapter weights: load the weights of the same "
            "checkpoint first (in a Trainer, LocalizationCallback(checkpoint=folder) says which that is)"
        )


def fingerprint(layers: Layers, name: str) -> Tensor:
    """SHA-256 of an adapter's labels and factors, `(32,)` uint8."""
    digest = hashlib.sha256()
    for layer in layers.values():
        factors = (layer.localized_local_A[name], layer.localized_local_B[name])
        tensors = [factor.get_parameter("weight").detach() for factor in factors]
        for tensor in (*tensors, layer.localized_row_labels[name], layer.localized_col_labels[name]):
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
