"""What each process of a sharded run does; test_sharded.py starts it by torchrun. KINDS... FOLDER

A run is: wrap the model, calibrate on batches of one's own, train, an event half-way where there can be one, save.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model
from peft.utils.other import fsdp_auto_wrap_policy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from localora import Repartitioner, ScheduleError, calibrate
from localora.adapter.model import adapted_layers
from method_table import BY_NAME
from tiny_models import LLAMA_TARGETS, tiny_llama, token_batch

METHODS = ("g-lora", "cps-lora")
STEPS = 4
WITH_EVENTS = ("ddp", "fsdp2", "zero2", "zero3")


def unplaced(method: str, events: bool) -> PeftModel:
    torch.manual_seed(1)
    config = BY_NAME[method].config(
        target_modules=LLAMA_TARGETS, placement="calibrate", init_weights=True, repartition=[0.5] if events else []
    )
    return get_peft_model(tiny_llama(), config)


def to_calibrate(rank: int) -> list[dict[str, torch.Tensor]]:
    return [token_batch(seed=10 * rank + i) for i in range(2)]


def to_train(rank: int, step: int) -> dict[str, torch.Tensor]:
    return token_batch(seed=1000 + 100 * rank + step)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """A large eps: with the usual one, Adam's first steps make whole steps of gradients that are rounding."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, eps=1e-3)


def labels(model: nn.Module) -> list[torch.Tensor]:
    found = [layer.local_partition("default") for _, layer in adapted_layers(model, "default")]
    return [side for partition in found if partition for side in (partition.row_labels, partition.col_labels)]


class Plain:
    """One process, and what the others change of it."""

    def __init__(self, model: PeftModel) -> None:
        self.model = self.wrapped = model
        self.optimizer: Any = None

    def prepare(self) -> None:
        self.optimizer = adam(self.model)

    def step(self, loss: torch.Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, folder: Path) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            self.model.save_pretrained(str(folder))


class Ddp(Plain):
    def prepare(self) -> None:
        super().prepare()
        self.wrapped = DistributedDataParallel(self.model)


class Fsdp2(Plain):
    def __init__(self, model: PeftModel) -> None:
        super().__init__(model)
        for block in model.base_model.model.model.layers:
            fully_shard(block)
        fully_shard(model)
        for parameter in model.parameters():
            assert isinstance(parameter, DTensor)
            assert parameter.to_local().numel() < parameter.numel()

    def save(self, folder: Path) -> None:
        state = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if dist.get_rank() == 0:
            self.model.save_pretrained(str(folder), state_dict=state)


class Fsdp1(Plain):
    def __init__(self, model: PeftModel) -> None:
        super().__init__(model)
        self.wrapped = FullyShardedDataParallel(
            model,
            auto_wrap_policy=ModuleWrapPolicy({LlamaDecoderLayer}),
            use_orig_params=True,
            device_id=torch.device("cpu"),
        )

    def prepare(self) -> None:
        self.optimizer = adam(self.wrapped)

    def save(self, folder: Path) -> None:
        state = get_model_state_dict(self.wrapped, options=StateDictOptions(full_state_dict=True))
        if dist.get_rank() == 0:
            self.model.save_pretrained(str(folder), state_dict=state)


class Fsdp1ByPeft(Fsdp1):
    """By PEFT's own policy: what trains is wrapped apart from what is frozen, so both may be in flat parameters."""

    def __init__(self, model: PeftModel) -> None:
        Plain.__init__(self, model)
        self.wrapped = FullyShardedDataParallel(
            model, auto_wrap_policy=fsdp_auto_wrap_policy(model), use_orig_params=False, device_id=torch.device("cpu")
        )


class Zero(Plain):
    """By a ZeRO optimizer around torch's AdamW, in float32 throughout."""

    def __init__(self, model: PeftModel, stage: int) -> None:
        import deepspeed

        super().__init__(model)
        settings = {
            "train_micro_batch_size_per_gpu": 3,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},  # nothing is too small
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": 0.0,  # its default is 1; torch's optimizers clip nothing
        }
        self.wrapped, self.optimizer, *_ = deepspeed.initialize(model=model, optimizer=adam(model), config=settings)

    def prepare(self) -> None:
        """Done already."""

    def step(self, loss: torch.Tensor) -> None:
        self.wrapped.backward(loss)
        self.wrapped.step()


class Zero3(Zero):
    def __init__(self, model: PeftModel) -> None:
        super().__init__(model, 3)
        assert all(parameter.numel() == 0 for parameter in model.parameters())  # each is in parts, elsewhere

    def save(self, folder: Path) -> None:
        state = self.wrapped._zero3_consolidated_16bit_state_dict()  # as accelerate does; in float32 here
        if dist.get_rank() == 0:
            self.model.save_pretrained(str(folder), state_dict=state)


KINDS: dict[str, Callable[[PeftModel], Plain]] = {
    "plain": Plain,
    "ddp": Ddp,
    "fsdp2": Fsdp2,
    "fsdp1": Fsdp1,
    "fsdp1-peft": Fsdp1ByPeft,
    "zero2": lambda model: Zero(model, 2),
    "zero3": Zero3,
}


def train(kind: str, method: str, ranks: list[int], folder: Path, events: bool) -> dict[str, Any]:
    """`ranks` are those whose batches this process takes: its own, or all of them where it is the only one."""
    run = KINDS[kind](unplaced(method, events))
    batches = [batch for rank in ranks for batch in to_calibrate(rank)]
    report = calibrate(run.wrapped if isinstance(run, Fsdp1) else run.model, batches)
    placed = labels(run.model)
    run.prepare()
    repartitioner = Repartitioner(run.model, run.optimizer, STEPS, batches) if events else None
    losses = []
    for step in range(STEPS):
        whole = 0.0
        for rank in ranks:  # more than one only in a single process, which steps on their mean
            loss = run.wrapped(**to_train(rank, step)).loss / len(ranks)
            whole += float(loss.detach())
            loss.backward() if rank != ranks[-1] else run.step(loss)
        losses.append(whole)
        if repartitioner:
            repartitioner.step()
    run.save(folder / f"{kind}-{method}")
    event = repartitioner.events[0].to_dict() if repartitioner else {}
    refused = "" if events or kind == "plain" else refusal(run, batches)
    return {
        "placed": placed,
        "labels": labels(run.model),
        "losses": losses,
        "held": [layer.held for layer in report.layers],
        "event": event,
        "refused": refused,
    }


def refusal(run: Plain, batches: list[Any]) -> str:
    """What is said to one who asks for an event where there can be none."""
    run.model.peft_config["default"].repartition = [0.5]
    try:
        Repartitioner(run.model, run.optimizer, STEPS, batches)
    except ScheduleError as error:
        return str(error)
    return "nothing"


def main() -> None:
    *kinds, folder = sys.argv[1:]
    torch.set_num_threads(1)
    if any(kind.startswith("zero") for kind in kinds):
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")
    else:
        dist.init_process_group("gloo")
    rank = dist.get_rank()
    for kind in kinds:
        for method in METHODS:
            result = train(kind, method, [rank], Path(folder), kind in WITH_EVENTS)
            torch.save(result, Path(folder, f"{kind}-{method}-{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
