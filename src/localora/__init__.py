"""Adapters on the part of a weight matrix that matters: G-LoRA and CPS-LoRA for Hugging Face PEFT.

Importing this package registers both methods with PEFT.
"""

from localora.export.lora import ExportReport, export_lora
from localora.placement.partition import Partition, Placement, PlacementError
from localora.tuner.calibration import calibrate
from localora.tuner.callback import LocalizationCallback
from localora.tuner.config import CpsLoraConfig, GlobalLocalLoraConfig
from localora.tuner.held import hold_factors
from localora.tuner.layer import UnplacedAdapterError
from localora.tuner.model import placement_of
from localora.tuner.passes import CalibrationError
from localora.tuner.registry import register
from localora.tuner.report import CalibrationReport, LayerReport
from localora.tuner.schedule import Repartitioner, RepartitionEvent, ScheduleError

register()

__version__ = "0.1.0"

__all__ = [
    "CalibrationError",
    "CalibrationReport",
    "CpsLoraConfig",
    "ExportReport",
    "GlobalLocalLoraConfig",
    "LayerReport",
    "LocalizationCallback",
    "Partition",
    "Placement",
    "PlacementError",
    "RepartitionEvent",
    "Repartitioner",
    "ScheduleError",
    "UnplacedAdapterError",
    "calibrate",
    "export_lora",
    "hold_factors",
    "placement_of",
]
