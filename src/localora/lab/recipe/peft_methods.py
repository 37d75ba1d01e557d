"""PEFT's own methods as sections of a recipe, each with PEFT's own config, so that baselines are fair."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from peft import AdaLoraConfig, GraloraConfig, HiraConfig, LoraConfig, LoraGAConfig, MissConfig, PeftConfig
from peft.tuners.lora import BdLoraConfig
from pydantic import Field, StrictBool

from localora.adapter.config import ALPHA_PER_RANK
from localora.adapter.options import LARGEST_RANK
from localora.errors import ConfigError
from localora.lab.recipe.section import Number, PositiveInt, Section

# AdaLoRA's schedule, as shares of the steps: before directions are taken away, and after the last was taken.
ADALORA_BEFORE, ADALORA_AFTER = 0.1, 0.5


class MethodBase(Section):
    name: str
    r: Annotated[PositiveInt, Field(le=LARGEST_RANK)] = Field(
        default=16, description="LoRA-equivalent rank: the parameters of LoRA at this rank"
    )
    target_modules: str | list[str] = "all-linear"

    def peft_config(self, seed: int, steps: int) -> PeftConfig:
        """The configuration that `get_peft_model` takes, for a training of so many steps.

        Raises:
            ConfigError: keys that contradict each other, or a method without an adapter; the message says which.
        """
        raise ConfigError(f"{self.name} has no adapter")


class AdapterMethod(MethodBase):
    alpha: Annotated[Number, Field(gt=0)] | None = Field(default=None, description="scale numerator; 2 r when left out")
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    use_rslora: StrictBool = False

    @property
    def resolved_alpha(self) -> Any:  # PEFT says int, and only divides by the rank
        return ALPHA_PER_RANK * self.r if self.alpha is None else self.alpha


class LoraMethod(AdapterMethod):
    """PEFT's own LoRA, the baseline, and its variants without keys of their own. Other methods of PEFT derive here.

    Some of them have more or fewer parameters than LoRA at the same rank; `ranks` then brings them level, and
    `localora compare` solves for it. The scale stays that of rank r.
    """

    name: Literal["lora", "rslora", "dora", "pissa"]
    target_parameters: list[str] | None = Field(default=None, description="stacked weights of experts; lora, rslora")
    ranks: dict[str, PositiveInt] = Field(default={}, description="PEFT's own rank by layer, where it is not r")

    def peft_config(self, seed: int, steps: int) -> PeftConfig:
        rslora = self.use_rslora or self.name == "rslora"
        if self.moves_base and rslora and self.ranks:
            raise ConfigError(f"{self.name}: cannot be saved with use_rslora and ranks together; leave one of them out")
        options = {
            "target_parameters": self.target_parameters,
            "lora_dropout": self.dropout,
            "lora_alpha": self.resolved_alpha,
            "use_rslora": rslora,
            "use_dora": self.name == "dora",
            "init_lora_weights": "pissa_niter_16" if self.name == "pissa" else True,
            "alpha_pattern": {layer: self._same_scale(rank, rslora) for layer, rank in self.ranks.items()},
        }
        return LoraConfig(r=self.r, rank_pattern=dict(self.ranks), **(self._common | options | self._own()))

    @property
    def moves_base(self) -> bool:
        """Whether it starts with a part of the frozen weight that is taken out of it."""
        return self.name == "pissa"

    @property
    def _common(self) -> dict[str, Any]:
        if self.target_parameters and self.name not in ("lora", "rslora"):
            raise ConfigError(f"{self.name}: PEFT puts it on linear layers only; leave target_parameters out")
        return {"target_modules": self.target_modules, "task_type": "CAUSAL_LM"}

    def _own(self) -> dict[str, Any]:
        """What a variant sets in LoRA's config."""
        return {}

    def _same_scale(self, rank: int, rslora: bool) -> float:
        """The alpha with which a layer of another rank keeps the scale of rank r."""
        ratio = rank / self.r
        return float(self.resolved_alpha * (math.sqrt(ratio) if rslora else ratio))


class LoraGaMethod(LoraMethod):
    """LoRA-GA: factors that start along the gradient of the frozen weights, estimated on training batches."""

    name: Literal["lora-ga"]  # type: ignore[assignment]
    calibration_steps: PositiveInt = Field(default=8, description="batches that the gradient is estimated on")

    @property
    def moves_base(self) -> bool:
        return True

    def _own(self) -> dict[str, Any]:
        return {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()}


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

    def peft_config(self, seed: int, steps: int) -> PeftConfig:
        first = self.init_r or self.r
        last = self.target_r or max(1, round(first / 1.5))
        if last >= first:
            raise ConfigError(
                f"adalora: starts with rank {first} and is to end with {last} on average, so there is none to take "
                "away; raise r or init_r, or lower target_r"
            )
        before, after = int(ADALORA_BEFORE * steps), int(ADALORA_AFTER * steps)
        if steps - after < max(2, before + 1):  # what it takes away it has to observe for a step at least
            raise ConfigError(f"adalora: {steps} steps leave none in which ranks could fall; raise training.steps")
        return AdaLoraConfig(
            init_r=first,
            target_r=last,
            tinit=before,
            tfinal=after,
            total_step=steps,
            lora_alpha=self.resolved_alpha * first / self.r,
            lora_dropout=self.dropout,
            **self._common,
        )


class GraloraMethod(LoraMethod):
    """GraLoRA: a grid of blocks, each with factors of its own (Jung et al., 2025); parameters of LoRA at rank r."""

    name: Literal["gralora"]  # type: ignore[assignment]
    ranks: dict[str, PositiveInt] = Field(default={}, max_length=0, description="r throughout; leave out")
    use_rslora: Literal[False] = Field(default=False, description="its scale is alpha / r")
    blocks: PositiveInt = Field(default=2, description="k of the k x k grid; must divide r and the layers' sides")

    def peft_config(self, seed: int, steps: int) -> PeftConfig:
        if self.r % self.blocks:
            raise ConfigError(f"gralora: r ({self.r}) must be a multiple of blocks ({self.blocks})")
        own = {"alpha": self.resolved_alpha, "gralora_dropout": self.dropout, "gralora_k": self.blocks}
        return GraloraConfig(r=self.r, **own, **self._common)


class BdLoraMethod(LoraMethod):
    """BD-LoRA: one of the two factors block-diagonal, for fast serving on several GPUs."""

    name: Literal["bd-lora"]  # type: ignore[assignment]
    blocks: PositiveInt = Field(default=2, description="of the block-diagonal factor; must divide every rank")
    row_sharded: list[str] = Field(default=["o_proj", "down_proj"], description="modules whose A is block-diagonal")
    column_sharded: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"], description="modules whose B is block-diagonal"
    )

    def _own(self) -> dict[str, Any]:
        wrong = sorted({rank for rank in (self.r, *self.ranks.values()) if rank % self.blocks})
        if wrong:
            raise ConfigError(f"bd-lora: ranks must be multiples of blocks ({self.blocks}), got {wrong}")
        rows, columns = self.row_sharded, self.column_sharded
        blocks = BdLoraConfig(target_modules_bd_a=rows, target_modules_bd_b=columns, nblocks=self.blocks)
        return {"use_bdlora": blocks}


class MissMethod(LoraMethod):
    """MiSS: one trained matrix a layer, shared by slices of the inputs. Has no scale: the learning rate makes up."""

    name: Literal["miss"]  # type: ignore[assignment]
    ranks: dict[str, PositiveInt] = Field(default={}, max_length=0, description="one rank for all; see own_rank")
    alpha: None = Field(default=None, description="it has no scale")
    use_rslora: Literal[False] = Field(default=False, description="it has no scale")
    own_rank: PositiveInt | None = Field(default=None, description="rows of the trained matrix; r when left out")

    def peft_config(self, seed: int, steps: int) -> PeftConfig:
        return MissConfig(r=self.own_rank or self.r, miss_dropout=self.dropout, **self._common)


class HiraMethod(LoraMethod):
    """HiRA: the low-rank product multiplies the frozen weight, entry by entry. Has no scale either."""

    name: Literal["hira"]  # type: ignore[assignment]
    alpha: None = Field(default=None, description="it has no scale")
    use_rslora: Literal[False] = Field(default=False, description="it has no scale")

    def peft_config(self, seed: int, steps: int) -> PeftConfig:
        return HiraConfig(r=self.r, hira_dropout=self.dropout, rank_pattern=dict(self.ranks), **self._common)


class FullMethod(MethodBase):
    """Full fine-tuning: no adapter, every weight of the model trains.

    `r` and `target_modules` only name the LoRA that its number of parameters is stated beside.
    """

    name: Literal["full"]
