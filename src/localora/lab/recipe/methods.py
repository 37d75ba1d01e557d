"""The `method` section of a recipe: ours, built from their PEFT configs, and PEFT's, with the keys only they have."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, StrictBool

from localora.adapter.config import ALPHA_PER_RANK, CpsLoraConfig, GLoraConfig, LocalizedConfig
from localora.adapter.options import LARGEST_RANK, options_of
from localora.lab.recipe.from_config import built_from, recipe_field
from localora.lab.recipe.section import PositiveInt, Section

Share = Annotated[float, Field(gt=0, lt=1)]


class MethodBase(Section):
    r: Annotated[PositiveInt, Field(le=LARGEST_RANK)] = Field(
        default=16, description="LoRA-equivalent rank: the parameters of LoRA at this rank"
    )
    target_modules: str | list[str] = "all-linear"


class AdapterMethod(MethodBase):
    alpha: Annotated[float, Field(gt=0)] | None = Field(default=None, description="scale numerator; 2 r when left out")
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    use_rslora: StrictBool = False

    @property
    def resolved_alpha(self) -> float:
        return ALPHA_PER_RANK * self.r if self.alpha is None else self.alpha


class LoraMethod(AdapterMethod):
    """PEFT's own LoRA, the baseline, and its variants without keys of their own. Other methods of PEFT derive here.

    Some of them have more or fewer parameters than LoRA at the same rank; `ranks` then brings them level, and
    `localora compare` solves for it. The scale stays that of rank r.
    """

    name: Literal["lora", "rslora", "dora", "pissa"]
    target_parameters: list[str] | None = Field(default=None, description="stacked weights of experts; lora, rslora")
    ranks: dict[str, PositiveInt] = Field(default={}, description="PEFT's own rank by layer, where it is not r")


class LoraGaMethod(LoraMethod):
    """LoRA-GA: factors that start along the gradient of the frozen weights, estimated on training batches."""

    name: Literal["lora-ga"]  # type: ignore[assignment]
    calibration_steps: PositiveInt = Field(default=8, description="batches that the gradient is estimated on")
    direction: Literal["ArBr", "A2rBr", "ArB2r", "random"] = Field(
        default="ArB2r", description="which of the gradient's singular vectors A and B start as"
    )
    scale: Literal["stable", "weight_svd", "gd_scale", "unit"] = Field(default="stable", description="of that start")
    stable_gamma: PositiveInt = Field(default=16, description="the start's scale falls with its square root")


class AdaLoraMethod(LoraMethod):
    """AdaLoRA: starts with one rank everywhere and takes directions away, layer by layer, until `target_r` is left.

    "Equal trainable parameters" means the start: init_r (m + n + 1) a matrix is what has gradients and optimizer
    state, and `init_r` is r, so it trains what LoRA of rank r trains and ends with less. Its authors count the end and
    start with 1.5 times as much; `init_r` and `target_r` can say so, and a comparison then wants a budget_label.
    """

    name: Literal["adalora"]  # type: ignore[assignment]
    ranks: dict[str, PositiveInt] = Field(default={}, max_length=0, description="AdaLoRA's own choice; leave out")
    use_rslora: Literal[False] = Field(default=False, description="its scale is alpha / init_r")
    init_r: PositiveInt | None = Field(default=None, description="rank of every layer at the start; r when left out")
    target_r: PositiveInt | None = Field(default=None, description="average rank at the end; init_r / 1.5 if not set")
    initial_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="share of the steps before directions are taken away"
    )
    final_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.5, description="share of the steps after the last was taken"
    )
    allocate_every: PositiveInt = Field(default=1, description="steps between two allocations")
    orthogonality: Annotated[float, Field(ge=0)] = Field(
        default=0.5, description="weight of the penalty that keeps directions orthogonal; part of the training loss"
    )

    @property
    def first_r(self) -> int:
        return self.init_r or self.r

    @property
    def last_r(self) -> int:
        return self.target_r or max(1, round(self.first_r / 1.5))


class GraloraMethod(LoraMethod):
    """GraLoRA: a grid of blocks, each with factors of its own (Jung et al., 2025); parameters of LoRA at rank r."""

    name: Literal["gralora"]  # type: ignore[assignment]
    ranks: dict[str, PositiveInt] = Field(default={}, max_length=0, description="r throughout; leave out")
    blocks: PositiveInt = Field(default=2, description="k of the k x k grid; must divide r and the layers' sides")


class BdLoraMethod(LoraMethod):
    """BD-LoRA: one of the two factors block-diagonal, for fast serving on several GPUs."""

    name: Literal["bd-lora"]  # type: ignore[assignment]
    blocks: PositiveInt = Field(default=2, description="of the block-diagonal factor; must divide every rank")
    row_sharded: list[str] = Field(default=["o_proj", "down_proj"], description="modules whose A is block-diagonal")
    column_sharded: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"],
        description="modules whose B is block-diagonal",
    )


class MissMethod(LoraMethod):
    """MiSS: one trained matrix a layer, shared by slices of the inputs. Has no scale: the learning rate makes up."""

    name: Literal["miss"]  # type: ignore[assignment]
    ranks: dict[str, PositiveInt] = Field(default={}, max_length=0, description="one rank for all; see own_rank")
    own_rank: PositiveInt | None = Field(default=None, description="rows of the trained matrix; r when left out")


class HiraMethod(LoraMethod):
    """HiRA: the low-rank product multiplies the frozen weight, entry by entry. Has no scale either."""

    name: Literal["hira"]  # type: ignore[assignment]


class LocalizedMethod(AdapterMethod):
    """One of ours: every other key is an option of its PEFT config, with the config's default, range and help."""

    config_class: ClassVar[type[LocalizedConfig]]
    calibration_steps: PositiveInt = Field(default=8, description="batches that calibration and events look at")

    def config(self, seed: int) -> LocalizedConfig:
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


class FullMethod(MethodBase):
    """Full fine-tuning: no adapter, every weight of the model trains. `r` and `target_modules` only name the LoRA that
    its number of parameters is stated beside.
    """

    name: Literal["full"]


MethodSection = Annotated[
    LoraMethod
    | LoraGaMethod
    | AdaLoraMethod
    | GraloraMethod
    | BdLoraMethod
    | MissMethod
    | HiraMethod
    | GLoraMethod
    | CpsLoraMethod
    | HybridMethod
    | FullMethod,
    Field(discriminator="name"),
]
METHOD_CLASSES: dict[str, type[MethodBase]] = {
    name: section
    for section in get_args(get_args(MethodSection)[0])
    for name in get_args(section.model_fields["name"].annotation)
}
METHODS = tuple(METHOD_CLASSES)
