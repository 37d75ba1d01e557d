"""The PEFT tuner: one layer class for LoRA, G-LoRA, CPS-LoRA and the hybrid, its life-cycle and its calibration."""
