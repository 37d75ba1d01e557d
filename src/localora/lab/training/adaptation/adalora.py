"""AdaLoRA: PEFT has its rank allocator, but leaves calling it to the user, and trains on without a word if nobody does.

Shape legend
    r_0     rank of every layer at the start        target_r  average rank at the end

Each layer's update is B diag(E) A. After every optimizer step the allocator scores the directions of all layers
together and sets E to zero for those that no longer fit its budget, which falls from r_0 to target_r per layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, AdaLoraModel, PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from localora.lab.progress import Reporter
from localora.lab.training.adaptation.base import Adaptation, Prepared, Trainee
from localora.lab.training.record import RunRecord
from localora.lab.training.trainer import TrainingError
from localora.lifecycle.processes import processes

STATE = "adalora.safetensors"  # in a checkpoint: scores and pattern, which PEFT does not save
SUFFIX = ".lora_E.default"

Pattern = dict[str, list[bool]]  # parameter name of a layer's E -> which of its directions are left


class AdaLora(Adaptation):
    """Its saved adapter holds the directions that are left, and nothing of the others."""

    def attach(self, prepared: Prepared, *, resume: bool) -> Trainee:
        config = self._config()
        assert isinstance(config, AdaLoraConfig)
        # PEFT adds the penalty to the loss of every micro-batch on every process, and the Trainer adds those up.
        config.orth_reg_weight /= self.recipe.training.gradient_accumulation * processes()[1]
        self._model = self._with_adapter(prepared, config)
        return self._model

    def callbacks(self, record: RunRecord, reporter: Reporter) -> list[TrainerCallback]:
        self._allocation = RankAllocation()
        return [self._allocation]

    def note(self, record: RunRecord) -> None:
        if self._allocation.pattern is not None:
            record.ranks = {name.removesuffix(SUFFIX): sum(left) for name, left in self._allocation.pattern.items()}
            record.parameters.rank = max(record.ranks.values())
            base = self._model.get_base_model()
            layers: dict[str, Any] = {name: base.get_submodule(name) for name in record.ranks}
            sides = {name: layer.in_features + 1 + layer.out_features for name, layer in layers.items()}
            record.parameters.stored = sum(rank * sides[name] for name, rank in record.ranks.items())


class RankAllocation(TrainerCallback):
    """Calls the allocator after every optimizer step, and holds it to its budget at the end.

    PEFT saves only the directions that the config's pattern leaves, in checkpoints too, and a checkpoint without the
    others fits neither the model nor the optimizer when training resumes. So the config has its pattern during the
    allocator's call and after training, and not in between.

    Attributes:
        pattern: which directions are left; None before the first allocation.

    Raises:
        TrainingError: at train end, if more directions are left than the budget allows; at train begin, if training
            resumes from a checkpoint without the allocator's state.
    """

    def __init__(self) -> None:
        self.pattern: Pattern | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step:
            self._load(_tuner(kwargs["model"]), _state_file(args, state))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        tuner = _tuner(kwargs["model"])
        config = _config(tuner)
        config.rank_pattern = self.pattern
        tuner.update_and_allocate(state.global_step + 1)  # the Trainer counts this step after the callback
        self.pattern, config.rank_pattern = config.rank_pattern, None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        allocator = _tuner(kwargs["model"]).rankallocator
        tensors = {f"sensitivity/{name}": score for name, score in allocator.exp_avg_ipt.items()}
        tensors |= {f"uncertainty/{name}": score for name, score in allocator.exp_avg_unc.items()}
        tensors |= {f"left/{name}": torch.tensor(left) for name, left in (self.pattern or {}).items()}
        if processes()[0] == 0:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, _state_file(args, state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        tuner = _tuner(kwargs["model"])
        budget = tuner.rankallocator.target_bgt
        left = None if self.pattern is None else sum(sum(mask) for mask in self.pattern.values())
        if left is None or left > budget:
            raise TrainingError(
                f"AdaLoRA was to end with {budget} directions in all, and has {'all' if left is None else left} left: "
                "its allocator did not run as scheduled, so what was trained is not AdaLoRA"
            )
        _config(tuner).rank_pattern = self.pattern

    def _load(self, tuner: AdaLoraModel, path: Path) -> None:
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"AdaLoRA cannot resume without the scores in {path} ({error}); start the run anew with --overwrite"
            ) from error
        device = next(tuner.parameters()).device
        held: dict[str, dict[str, Any]] = {"sensitivity": {}, "uncertainty": {}, "left": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            held[kind][name] = tensor.tolist() if kind == "left" else tensor.to(device)
        allocator = tuner.rankallocator
        allocator.exp_avg_ipt, allocator.exp_avg_unc = held["sensitivity"], held["uncertainty"]
        allocator.ipt = dict(held["sensitivity"])  # each step writes it anew; its keys say which averages exist
        self.pattern = held["left"] or None


def _tuner(model: Any) -> AdaLoraModel:
    assert isinstance(model, PeftModel)
    assert isinstance(model.base_model, AdaLoraModel)
    return model.base_model


def _config(tuner: AdaLoraModel) -> AdaLoraConfig:
    config = tuner.peft_config["default"]
    assert isinstance(config, AdaLoraConfig)
    return config


def _state_file(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / STATE
