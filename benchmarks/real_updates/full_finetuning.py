"""Every weight of the linear layers and the rest trained, by transformers' Trainer, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Trainer, TrainingArguments

from localora.lab.data.batches import Collator, Encoded


def fine_tune(
    model: PreTrainedModel, encoded: list[Encoded], pad_id: int, folder: Path, steps: int, batch: int, rate: float
) -> list[dict[str, Any]]:
    """Train `model` in place for `steps` steps of `batch` sequences; resumes from the folder's last checkpoint."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=rate,
        lr_scheduler_type="linear",
        warmup_steps=steps // 10,
        per_device_train_batch_size=batch,
        seed=0,
        save_steps=50,
        save_total_limit=1,
        logging_steps=10,
        disable_tqdm=True,
        report_to=[],
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=encoded, data_collator=Collator(pad_id))
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*/trainer_state.json")) or None)
    return trainer.state.log_history
