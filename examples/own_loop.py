"""CPS-LoRA in a training loop of one's own, with one event half-way. python examples/own_loop.py [MODEL]"""

import sys

import torch
from peft import get_peft_model

from localora import CpsLoraConfig, Repartitioner, adapter_size, calibrate
from localora.lab.model.base import load_base_model

STEPS = 20
name = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"

model, tokenizer = load_base_model(name)  # or your own transformers model
config = CpsLoraConfig(
    r=8, clusters=2, repartition=[0.5], repartition_place="random", target_modules="all-linear", task_type="CAUSAL_LM"
)
model = get_peft_model(model, config)

batches = []
for first in range(8):
    texts = [f"{first} plus {second} is {first + second}." for second in range(4)]
    batch = dict(tokenizer(texts, return_tensors="pt", padding=True))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    batches.append(batch)

print(calibrate(model, batches, steps=2))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
repartitioner = Repartitioner(model, optimizer, STEPS, batches)
for step in range(STEPS):
    loss = model(**batches[step % len(batches)]).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(repartitioner.step() or f"step {step + 1}: loss {loss.item():.3f}")

model.save_pretrained("my-adapter")
print(adapter_size(model))
