"""One run, from recipe to record: load, measure, adapt, train, measure again, save, export."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from peft import PeftModel
from rich.console import Console
from torch import nn
from transformers import TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from localora.adapter.card import note_training
from localora.files import StorageError, storage_reason, written_folder
from localora.lab.data.batches import Collator
from localora.lab.model.dtype import ChosenDtype
from localora.lab.progress import Reporter
from localora.lab.recipe.methods import LocalizedMethod
from localora.lab.recipe.schema import Recipe, differences
from localora.lab.run.setup import Setup, load_setup
from localora.lab.run.verification import export_and_verify
from localora.lab.training.adaptation import adaptation_of
from localora.lab.training.adaptation.base import Trainee, unfit_methods_named
from localora.lab.training.callbacks import Checkpoints, HeldOutLoss, Steps, curve_of, last_losses
from localora.lab.training.folder import FolderError, RunFolder, check_space, open_run_folder, remove, steps_of
from localora.lab.training.lock import check_there, check_unlocked, locked
from localora.lab.training.memory import PeakMemory
from localora.lab.training.parameters import all_parameters, lora_beside, trainable_parameters
from localora.lab.training.peers import all_at_work, explained, join_processes
from localora.lab.training.record import Evaluation, Parameters, RunRecord
from localora.lab.training.seal import check_seal
from localora.lab.training.trainer import build_trainer, check_trackers
from localora.lifecycle.processes import check_same, decide_once, is_main_process

BYTES_PER_PARAMETER = 4 * 3 * 3  # float32 weights and two Adam moments; two checkpoints at a time, result and export


def train(
    recipe: Recipe,
    *,
    overwrite: bool = False,
    resume: bool = False,
    before: Evaluation | None = None,
    console: Console | None = None,
) -> RunRecord:
    """Run `recipe` and return its record, which is also in the output folder as run.json.

    Started by torchrun or accelerate launch, all processes call this, train together, and get the same record; the
    first of them writes it.

    Args:
        overwrite: replace the run that the folder holds.
        resume: continue the folder's run from its last checkpoint.
        before: the untrained model's evaluation, when an earlier run on the same model and data has it already.

    Raises:
        FolderError: the output folder cannot be used, or another process uses it; raised before anything is loaded.
        StorageError: the disk is full, or the folder was taken away; the run can be continued, or says that it is lost.
        DataError, ModelError, RecipeError: raised before training.
        ProcessError: another process of the run ended, or has another recipe or other data; the message names it.
        CalibrationError, TrainingError: raised in training; the record then says `failed` and why.
    """
    join_processes()
    console = console or Console(quiet=not is_main_process())
    with ExitStack() as held, all_at_work():
        folder, earlier = decide_once(lambda: _open(recipe, held, overwrite=overwrite, resume=resume))
        return _Run(recipe, folder, earlier, Reporter(console)).whole(before, overwrite)


def folder_of(recipe: Recipe) -> RunFolder:
    """Where a recipe's run is, or will be."""
    return RunFolder(Path(recipe.output.folder or "runs/run"))


def _open(recipe: Recipe, held: ExitStack, *, overwrite: bool, resume: bool) -> tuple[RunFolder, RunRecord | None]:
    """The folder, with its lock `held`. What is wrong with it is said before anything is made."""
    path = folder_of(recipe).path
    check_unlocked(path)
    open_run_folder(path, overwrite=overwrite, resume=resume)
    held.enter_context(locked(path))
    folder = open_run_folder(path, overwrite=overwrite, resume=resume)  # another may have come and gone
    earlier = _earlier_record(folder, recipe) if resume else None
    folder.sweep()
    return folder, earlier


def _earlier_record(folder: RunFolder, recipe: Recipe) -> RunRecord:
    earlier = RunRecord.read(folder.record)
    if earlier.status == "finished":
        raise FolderError(f"the run in {folder.path} is finished; --overwrite starts it anew")
    checkpoint = folder.last_checkpoint()
    if checkpoint is None:
        raise FolderError(
            f"the run in {folder.path} stopped before its first checkpoint (training.checkpoint_every); "
            "start it again with --overwrite"
        )
    changed = list(differences(earlier.recipe, recipe.resolved()))
    if changed:
        raise FolderError(
            f"the run in {folder.path} was started with another recipe ({'; '.join(changed)}); "
            "resume it with its own, or choose another folder with --out"
        )
    check_seal(checkpoint)
    reached = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
    if reached != steps_of(checkpoint) or reached > recipe.training.steps:
        raise FolderError(
            f"{checkpoint} holds step {reached} of a run of {recipe.training.steps}: it was not written here under "
            "this name; remove it, and --resume takes the one before it, if there is one"
        )
    return earlier


class _Run:
    """One run in its folder. `earlier` is the record of the interrupted run that it goes on with."""

    record: RunRecord
    setup: Setup
    model: Trainee

    def __init__(self, recipe: Recipe, folder: RunFolder, earlier: RunRecord | None, reporter: Reporter) -> None:
        self.recipe, self.folder, self.earlier, self.reporter = recipe, folder, earlier, reporter
        self.adaptation = adaptation_of(recipe, folder)

    def whole(self, before: Evaluation | None, overwrite: bool) -> RunRecord:
        """From loading to the finished record."""
        check_trackers(self.recipe)
        with PeakMemory() as memory:
            self.prepare(before)
            record, folder = self.record, self.folder
            check_space(folder.path, record.parameters.trainable * BYTES_PER_PARAMETER)
            if overwrite and is_main_process():
                folder.clear()
            self.write()
            try:
                self.train()
                with self.timed("after"):
                    record.after = self.measure("measuring after")
                if is_main_process():
                    with self.reporter.phase("saving"):
                        self.save()
            except Exception as raised:
                error = explained(raised)
                said = storage_reason(error, folder.path)
                full = None
                if said is not None:
                    full = StorageError(f"{said} (the run in {folder.path}: {folder.how_to_go_on()})")
                record.status, record.error = "failed", str(full or error)
                with suppress(StorageError):  # the disk that is full, or the folder that is gone, is what we tell of
                    self.write()
                if full is None and error is raised:
                    raise
                raise full or error from raised
            record.peak_memory_mib = max(record.peak_memory_mib, memory.mib)
        record.status = "finished"
        self.write()
        if is_main_process():
            remove(folder.checkpoints)  # not before the record says that they are not needed
        return record

    def prepare(self, before: Evaluation | None) -> None:
        """Load, measure the untrained model where nobody has, attach what is to be trained, begin the record."""
        recipe, earlier, start = self.recipe, self.earlier, time.perf_counter()
        dtype = None
        if earlier is not None and earlier.dtype and recipe.model.dtype == "auto":
            dtype = ChosenDtype(earlier.dtype, earlier.dtype_reason or "as it was before")
        with self.reporter.phase(f"loading {recipe.model.name}"):
            self.setup = setup = load_setup(recipe, dtype)
        task = setup.task
        check_same(
            {"recipe": str(recipe.resolved()), **{f"{split} data": h for split, h in task.hashes.items()}},
            "give all processes the same recipe and files (and the same versions of them on every machine)",
        )
        if earlier is not None and earlier.data["hashes"] != task.hashes:
            raise FolderError("the data changed since the run was started; start it anew with --overwrite")
        for line in setup.header(recipe.training):
            self.reporter.say(line)
        loaded = time.perf_counter()
        self.model = setup.model
        if earlier is not None:
            before = earlier.before
        before = before or self.measure("measuring before")
        measured = time.perf_counter()
        base = all_parameters(setup.model)
        with unfit_methods_named():
            of_lora = trainable_parameters(lora_beside(setup.model, recipe.method))
        set_seed(recipe.training.seed)  # so that every method draws the same order of examples
        attaching = time.perf_counter()
        with self.reporter.phase(f"attaching {recipe.method.name}", brief=True):
            self.model = self.adaptation.attach(setup, resume=earlier is not None)
        attached = time.perf_counter()
        sizes = {"train": len(task.train), "validation": len(task.validation), "test": len(task.test)}
        self.record = record = RunRecord(
            recipe=recipe.resolved(),
            seed=recipe.training.seed,
            data={"name": task.name, "sizes": sizes, "hashes": task.hashes},
            parameters=Parameters(trainable=trainable_parameters(self.model), lora_same_r=of_lora, base=base),
            before=before,
            dtype=str(setup.model.dtype).removeprefix("torch."),
            dtype_reason=setup.dtype.reason,
            seconds={"load": loaded - start, "before": measured - loaded, "attach": attached - attaching},
        )
        if earlier is not None:
            for name in ("placement", "resumed_at", "repartitions", "ranks", "peak_memory_mib"):
                setattr(record, name, getattr(earlier, name))
            for stage, seconds in earlier.seconds.items():
                record.seconds[stage] = record.seconds.get(stage, 0.0) + seconds

    def train(self) -> None:
        def measure(model: nn.Module) -> float:
            with self.reporter.phase("measuring held-out loss", brief=True):
                return self.setup.held_out_loss(model)

        start, earlier_seconds = time.perf_counter(), self.record.seconds.get("train", 0.0)

        def keep(state: TrainerState) -> None:
            self.adaptation.note(self.record)
            self.record.curve = curve_of(state)
            self.record.seconds["train"] = earlier_seconds + time.perf_counter() - start
            self.write()

        checkpoint = decide_once(self.folder.last_checkpoint)
        if checkpoint is not None:
            self.record.resumed_at.append(steps_of(checkpoint))
        with self.reporter.phase("training", "step") as phase:
            trainer = build_trainer(
                self.recipe,
                self.folder.checkpoints,
                model=self.model,
                train_dataset=self.setup.train,
                data_collator=Collator(self.setup.pad_id),
                callbacks=[
                    Steps(phase),
                    *self.adaptation.callbacks(self.record, self.reporter),
                    HeldOutLoss(measure, self.recipe.evaluation.curve_points),
                    Checkpoints(self.folder, keep),
                ],
            )
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            phase.result = f"{trainer.state.global_step} steps  {last_losses(trainer.state)}"
        keep(trainer.state)

    def measure(self, name: str) -> Evaluation:
        with self.reporter.phase(name) as phase:
            found = decide_once(lambda: self.setup.measure(self.model, phase.tell))
            phase.result = f"loss {found.loss:.3f}"
            if found.score is not None:
                phase.result += f", {found.score_name} {sum(found.right)} of {found.score_examples}"
        return found

    def write(self) -> None:
        if is_main_process():
            self.record.write(self.folder.record)

    def save(self) -> None:
        localized = isinstance(self.recipe.method, LocalizedMethod)
        with self.timed("save"):
            check_there(self.folder.path)
            with written_folder(self.adaptation.result) as beside:
                self.adaptation.save(self.setup, self.model, beside)
                if localized:
                    note_training(beside, self.record.facts())
            if self.recipe.output.export and localized:
                assert isinstance(self.model, PeftModel)
                adapter, lora = self.folder.adapter, self.folder.lora
                self.record.export = export_and_verify(self.model, self.setup.test[0], adapter, lora)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.record.seconds[stage] = self.record.seconds.get(stage, 0.0) + time.perf_counter() - start
