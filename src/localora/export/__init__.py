"""From our adapters to what serving engines read: plain LoRA folders."""
