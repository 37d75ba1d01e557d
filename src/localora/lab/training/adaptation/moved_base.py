"""Methods whose adapter starts with a part of the frozen weight that is taken out of it: PiSSA and LoRA-GA.

    W = (W - s B_0 A_0) + s B_0 A_0         the start; W - s B_0 A_0 is frozen, B and A train
    dW = s B A - s B_0 A_0                  the result: plain LoRA of rank 2 r on the untouched W

Saved as it is, such an adapter would need its start to be computed again wherever it is loaded: PiSSA's would come out
a little different, LoRA-GA's gradient is gone. So the start is kept on disk until the end, a resumed run reads it back,
and what is saved is dW.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, preprocess_loraga, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from localora.lab.data.batches import Collator
from localora.lab.model.base import device_of
from localora.lab.progress import Reporter
from localora.lab.recipe.peft_methods import LoraGaMethod
from localora.lab.training.adaptation.base import Adaptation, Prepared, Trainee, unfit_methods_named
from localora.lab.training.folder import FolderError, RunFolder
from localora.lab.training.parameters import lora_beside
from localora.lab.training.record import RunRecord
from localora.lab.training.trainer import finite
from localora.lifecycle.processes import processes


class MovedBaseAdapter(Adaptation):
    """PiSSA, and LoRA-GA, whose gradient comes from training examples alone."""

    def attach(self, prepared: Prepared, *, resume: bool) -> Trainee:
        config = self._config()
        assert isinstance(config, LoraConfig)
        if resume:
            config.init_lora_weights = True
        elif isinstance(self.recipe.method, LoraGaMethod):
            self._estimate_gradient(prepared, config, self.recipe.method.calibration_steps)
        model = self._with_adapter(prepared, config)
        if resume:
            move_base(model, start_folder(self.folder))
        return model

    def callbacks(self, record: RunRecord, reporter: Reporter) -> list[TrainerCallback]:
        return [_KeepStart(start_folder(self.folder))]

    def note(self, record: RunRecord) -> None:
        ranks = (record.recipe["method"]["r"], *record.recipe["method"]["ranks"].values())
        record.parameters.stored, record.parameters.rank = 2 * record.parameters.trainable, 2 * max(ranks)

    def save(self, prepared: Prepared, model: Trainee, to: Path) -> None:
        assert isinstance(model, PeftModel)
        start = str(start_folder(self.folder))
        model.save_pretrained(str(to), path_initial_model_for_weight_conversion=start)

    def _estimate_gradient(self, prepared: Prepared, config: LoraConfig, batches: int) -> None:
        """Leave on each adapted layer the mean gradient of its weight, where PEFT looks for it.

        Every process looks at the same batches, so all of them start alike.
        """
        model, size = prepared.model, self.recipe.training.batch_size
        collate = Collator(prepared.pad_id)
        drawn = torch.Generator().manual_seed(self.recipe.training.seed)
        order = torch.randperm(len(prepared.train), generator=drawn).tolist()[: batches * size]

        def backward() -> None:
            for at in range(0, len(order), size):
                batch = collate([prepared.train[i] for i in order[at : at + size]])
                loss = model(**{name: tensor.to(device_of(model)) for name, tensor in batch.items()}).loss
                finite(loss.item(), "that LoRA-GA takes its gradient of")
                loss.backward()

        chosen = copy.copy(config)
        if config.target_modules == "all-linear":  # get_peft_model would write them out, but comes later
            chosen.target_modules = lora_beside(model, self.recipe.method).base_model.targeted_module_names  # type: ignore[assignment]
        with warnings.catch_warnings(), unfit_methods_named():
            # PEFT counts batches in hooks, and torch remarks that nothing below the first layer needs a gradient.
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            preprocess_loraga(model, chosen, backward)


def start_folder(folder: RunFolder) -> Path:
    """Beside the checkpoints, and gone with them; PEFT takes its last part for an adapter's name."""
    return folder.checkpoints / "start"


def move_base(model: PeftModel, start: Path) -> None:
    """Give a fresh LoRA the start that was kept, and take it out of the frozen weights.

    Raises:
        FolderError: there is none.
    """
    path = start / "adapter_model.safetensors"
    if not path.is_file():
        raise FolderError(f"{path} is missing, and the run cannot go on without its start; use --overwrite")
    set_peft_model_state_dict(model, load_file(path))
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    with torch.no_grad():
        for layer in layers:
            weight = layer.get_base_layer().weight
            weight.copy_(weight.float() - layer.get_delta_weight("default").float())


class _KeepStart(TrainerCallback):
    """Saves the adapter before its first step."""

    def __init__(self, start: Path) -> None:
        self.start = start

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        model = kwargs["model"]
        assert isinstance(model, PeftModel)
        if state.global_step == 0 and processes()[0] == 0:
            model.save_pretrained(str(self.start))
