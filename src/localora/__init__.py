"""Adapters on the part of a weight matrix that matters: G-LoRA and CPS-LoRA for Hugging Face PEFT.

Importing this package registers both methods with PEFT.
"""

import os

# A shell that completes a command line waits at every TAB for what is imported: seconds of torch, and no use for it.
if "_LOCALORA_COMPLETE" not in os.environ:
    from localora.adapter.config import CpsLoraConfig, GLoraConfig
    from localora.adapter.factor_cache import hold_factors
    from localora.adapter.layer_state import UnplacedAdapterError
    from localora.adapter.loading import hot_swap, load
    from localora.adapter.registry import register
    from localora.adapter.status import AdapterSize, adapter_size, placement_of
    from localora.errors import ScheduleError
    from localora.export.folder import ExportError
    from localora.export.lora import ExportReport, export_lora
    from localora.lifecycle.calibration import calibrate, calibrate_from_update
    from localora.lifecycle.callback import LocalizationCallback
    from localora.lifecycle.passes import CalibrationError
    from localora.lifecycle.repartition import RepartitionEvent
    from localora.lifecycle.report import CalibrationReport, LayerReport
    from localora.lifecycle.schedule import Repartitioner
    from localora.placement.partition import Partition, Placement, PlacementError

    register()

__version__ = "0.1.0"

__all__ = [
    "AdapterSize",
    "CalibrationError",
    "CalibrationReport",
    "CpsLoraConfig",
    "ExportError",
    "ExportReport",
    "GLoraConfig",
    "LayerReport",
    "LocalizationCallback",
    "Partition",
    "Placement",
    "PlacementError",
    "RepartitionEvent",
    "Repartitioner",
    "ScheduleError",
    "UnplacedAdapterError",
    "adapter_size",
    "calibrate",
    "calibrate_from_update",
    "export_lora",
    "hold_factors",
    "hot_swap",
    "load",
    "placement_of",
]
