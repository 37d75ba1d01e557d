"""CPS-LoRA in transformers' Trainer: one callback places it. python examples/trainer_callback.py [MODEL]"""

import sys

from peft import get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from localora import CpsLoraConfig, LocalizationCallback
from localora.lab.model.base import load_base_model

name = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"

model, tokenizer = load_base_model(name)  # or your own transformers model
texts = [f"{first} plus {second} is {first + second}." for first in range(10) for second in range(10)]
rows = [{"input_ids": ids, "labels": list(ids)} for ids in tokenizer(texts)["input_ids"]]

callback = LocalizationCallback(steps=2)
trainer = Trainer(
    model=get_peft_model(model, CpsLoraConfig(r=8, clusters=2, target_modules="all-linear", task_type="CAUSAL_LM")),
    args=TrainingArguments(
        "my-checkpoints",
        max_steps=20,
        learning_rate=3e-3,
        per_device_train_batch_size=4,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
    ),
    train_dataset=rows,
    data_collator=DataCollatorForSeq2Seq(tokenizer),
    callbacks=[callback],
)
trainer.train()
print(callback.reports["default"])
trainer.save_model("my-adapter")
