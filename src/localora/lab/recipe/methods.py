"""The `method` section of a recipe: ours, built from their PEFT configs, and PEFT's; each says what config it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, get_args

from peft import PeftConfig
from pydantic import Field

from localora.adapter.config import CpsLoraConfig, GLoraConfig, LocalizedConfig
from localora.adapter.options import options_of
from localora.lab.recipe.peft_methods import (
    AdaLoraMethod,
    AdapterMethod,
    BdLoraMethod,
    FullMethod,
    GraloraMethod,
    HiraMethod,
    LoraGaMethod,
    LoraMethod,
    MethodBase,
    MissMethod,
)
from localora.lab.recipe.section import Number, PositiveInt, built_from, recipe_field

Share = Annotated[Number, Field(gt=0, lt=1)]


class LocalizedMethod(AdapterMethod):
    """One of ours: every other key is an option of its PEFT config, with the config's default, range and help."""

    config_class: ClassVar[type[LocalizedConfig]]
    calibration_steps: PositiveInt = Field(default=8, description="batches that calibration and events look at")

    def peft_config(self, seed: int, steps: int) -> PeftConfig:
        options = self.model_dump(exclude={"name", "calibration_steps"})
        return self.config_class(**options, seed=seed, task_type="CAUSAL_LM")


_GLoraSection: Any = built_from(GLoraConfig, LocalizedMethod, without=["target_modules"])
_ClusteredSection: Any = built_from(CpsLoraConfig, LocalizedMethod, without=["target_modules", "global_share"])


class GLoraMethod(_GLoraSection):
    """A low rank on the whole matrix, a higher one on the block of important rows and columns."""

    config_class: ClassVar[type[LocalizedConfig]] = GLoraConfig
    name: Literal["g-lora"]


class ClusteredMethod(_ClusteredSection):
    config_class: ClassVar[type[LocalizedConfig]] = CpsLoraConfig


class CpsLoraMethod(ClusteredMethod):
    """Independent low-rank updates in K co-clusters of rows and columns."""

    name: Literal["cps-lora"]


class HybridMethod(ClusteredMethod):
    """CPS-LoRA beside a low-rank term on the whole matrix."""

    name: Literal["hybrid"]
    global_share: Share = recipe_field(options_of(CpsLoraConfig)["global_share"], default=0.5)


MethodSection = Annotated[
    LoraMethod
    | GLoraMethod
    | CpsLoraMethod
    | HybridMethod
    | LoraGaMethod
    | AdaLoraMethod
    | GraloraMethod
    | BdLoraMethod
    | MissMethod
    | HiraMethod
    | FullMethod,
    Field(discriminator="name"),
]
METHOD_CLASSES: dict[str, type[MethodBase]] = {
    name: section
    for section in get_args(get_args(MethodSection)[0])
    for name in get_args(section.model_fields["name"].annotation)
}
METHODS = tuple(METHOD_CLASSES)
VARIANTS = {  # of LoRA, whose section they share
    "lora": "PEFT's own LoRA, the baseline",
    "rslora": "LoRA scaled by alpha / sqrt(r)",
    "dora": "direction and magnitude apart",
    "pissa": "starts as the leading singular directions of W",
}


def describe_methods() -> Iterator[str]:
    """A line a method: its name, what it is, and the keys that it has beyond those of its family."""
    ours = [cls for cls in METHOD_CLASSES.values() if issubclass(cls, LocalizedMethod)]
    shared = set(LoraMethod.model_fields) | set.intersection(*(set(cls.model_fields) for cls in ours))
    for name, cls in METHOD_CLASSES.items():
        own = [key for key in cls.model_fields if key not in shared or (key == "calibration_steps" and cls not in ours)]
        said = VARIANTS.get(name) or str(cls.__doc__).split("\n")[0].rstrip(".").split(": ", 1)[-1]
        yield f"{name:<10} {said}" + (f" ({', '.join(own)})" if own else "")
