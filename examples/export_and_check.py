"""Export an adapter, and have stock PEFT, in a process without localora, compute the same from it.

Run one of the other examples first: this one reads my-adapter, and writes my-plain-lora.
"""

import subprocess
import sys

import torch

from localora import export_lora
from localora.lab.model.adapted import load_adapted

print(export_lora("my-adapter", "my-plain-lora", overwrite=True))
loaded = load_adapted("my-adapter")
tokens = loaded.tokenizer("3 plus 4 is", return_tensors="pt")["input_ids"]

STOCK_PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, out, *tokens = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), out).eval()
assert "localora" not in sys.modules
print(*model(torch.tensor([[int(token) for token in tokens]])).logits[0, -1].tolist())
"""
command = [sys.executable, "-c", STOCK_PEFT, loaded.base, "my-plain-lora", *map(str, tokens[0].tolist())]
answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
theirs = torch.tensor([float(logit) for logit in answer.split()])
with torch.no_grad():
    ours = loaded.model.eval()(tokens).logits[0, -1]
difference = (ours - theirs).abs().max().item()
print(f"largest difference of {len(ours)} logits: {difference:.1e}")
assert difference < 1e-3
