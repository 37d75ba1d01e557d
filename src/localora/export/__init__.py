"""How an adapter leaves: plain LoRA, GGUF, merged checkpoints, what engines need. Nothing is placed or trained."""
