"""Adapters on the part of a weight matrix that matters: G-LoRA and CPS-LoRA for Hugging Face PEFT.

Importing this package registers both methods with PEFT.
"""

from localora.placement.partition import Partition, Placement, PlacementError
from localora.tuner.config import CpsLoraConfig, GlobalLocalLoraConfig
from localora.tuner.layer import UnplacedAdapterError
from localora.tuner.registry import register

register()

__version__ = "0.1.0"

__all__ = [
    "CpsLoraConfig",
    "GlobalLocalLoraConfig",
    "Partition",
    "Placement",
    "PlacementError",
    "UnplacedAdapterError",
]
