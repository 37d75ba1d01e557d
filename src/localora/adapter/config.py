"""The two configs users write, G-LoRA and CPS-LoRA: both of PEFT type LOCALIZED, each loads back as what it was."""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from peft import PeftConfig
from peft.utils.other import get_pattern_key

from localora.errors import ConfigError
from localora.placement.budget import BudgetError, LayerBudget, clustered_budget, global_local_budget
from localora.placement.partition import MAX_CLUSTERS

PEFT_TYPE_NAME = "LOCALIZED"
PlacementMode = Literal["calibrate", "random", "contiguous"]
PLACEMENT_MODES: tuple[PlacementMode, ...] = ("calibrate", "random", "contiguous")
RepartitionPlace = Literal["found", "random", "kept"]
REPARTITION_PLACES: tuple[RepartitionPlace, ...] = ("found", "random", "kept")
RepartitionSignal = Literal["gradient", "delta", "both"]
REPARTITION_SIGNALS: tuple[RepartitionSignal, ...] = ("gradient", "delta", "both")
FrozenMode = Literal["factors", "merged"]
FROZEN_MODES: tuple[FrozenMode, ...] = ("factors", "merged")


@dataclass
class LocalizedConfig(PeftConfig):
    """What both methods share. Not built directly, except by PEFT when it loads an `adapter_config.json`.

    Args:
        r: LoRA-equivalent rank. The adapter trains what LoRA of this rank trains, within 0.5 %.
        alpha: scaling numerator. The update is scaled by alpha / r, or alpha / sqrt(r) with `use_rslora`, where r is
            the LoRA-equivalent rank; global and local terms share this scale.
        dropout: probability of dropping an input of the adapter (not of the base layer).
        use_rslora: scale by alpha / sqrt(r).
        target_modules: names, suffixes or a regular expression of the layers to adapt, or "all-linear"; None takes
            PEFT's default for the architecture.
        exclude_modules, layers_to_transform, layers_pattern, rank_pattern, alpha_pattern, modules_to_save: as in
            `peft.LoraConfig`.
        global_share: share of the rank that a global term over the whole matrix gets.
        placement: "calibrate" waits for :func:`localora.calibrate` or :class:`localora.LocalizationCallback`;
            "random" and "contiguous" place at once, for ablations.
        seed: seed of random placements and of calibration's sketches.
        init_weights: True starts from dW = 0; False from a non-zero update (for tests).
        repartition: when events happen (see :mod:`localora.lifecycle.repartition`), as fractions of training in (0, 1];
            empty means never. Done by :class:`localora.LocalizationCallback`, or by :class:`localora.Repartitioner` in
            a loop of one's own.
        repartition_every: or every so many optimizer steps; 0 means not.
        repartition_place: labels after an event: "found" by the method's planner on the present gradient, "random", or
            "kept".
        frozen: where the updates of past events are: "factors" beside the live ones, or "merged" into the base weights
            in memory, with the factors kept on the CPU; that a quantized base refuses.
        frozen_rank: upper bound of that frozen term's rank, kept by SVD, whose error the event states; 0 means none.
        rewarm: optimizer steps over which the learning rate rises again after an event, from 1 / rewarm of it.
        consolidated_rank: rank of the frozen term so far, the same in every layer; written by the library.

    Raises:
        ValueError: any value outside its range, when the config is built.
    """

    method: ClassVar[str]
    of_saved_adapter = False  # built by PEFT from an adapter's folder, whose labels are read and never planned again

    r: int = field(default=16, metadata={"help": "LoRA-equivalent rank."})
    alpha: float = field(default=32.0, metadata={"help": "Scaling numerator: the update is scaled by alpha / r."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale by alpha / sqrt(r)."})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Layers to adapt."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Layers to leave out."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Indices of blocks to adapt."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of blocks."})
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Layer name or regex to its own r."})
    alpha_pattern: dict[str, float] = field(
        default_factory=dict, metadata={"help": "Layer name or regex to its alpha."}
    )
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved in full."})
    global_share: float = field(default=0.0, metadata={"help": "Share of the rank for the whole matrix."})
    placement: PlacementMode = field(default="calibrate", metadata={"help": "calibrate | random | contiguous"})
    seed: int = field(default=0, metadata={"help": "Seed of placements and sketches."})
    init_weights: bool = field(default=True, metadata={"help": "Start from a zero update."})
    repartition: list[float] = field(default_factory=list, metadata={"help": "Fractions of training at events."})
    repartition_every: int = field(default=0, metadata={"help": "Events every so many optimizer steps; 0: not."})
    repartition_place: RepartitionPlace = field(default="found", metadata={"help": "found | random | kept"})
    frozen: FrozenMode = field(default="factors", metadata={"help": "Where past updates are: factors | merged"})
    frozen_rank: int = field(default=0, metadata={"help": "Upper bound of the frozen term's rank; 0: none."})
    rewarm: int = field(default=0, metadata={"help": "Steps over which the learning rate rises after an event."})
    consolidated_rank: int = field(default=0, metadata={"help": "Rank of the frozen term; written by the library."})

    def __new__(cls, *args: Any, **kwargs: Any) -> LocalizedConfig:
        # PEFT knows one config class per type and builds it from the saved keys; `method` says which of ours it was.
        if cls is not LocalizedConfig:
            return super().__new__(cls)
        chosen = _config_class(kwargs.get("method"))
        known = {f.name for f in dataclasses.fields(chosen)}
        for key in kwargs:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else "; it may come from a newer localora"
                raise ConfigError(f"unknown key {key!r} for {chosen.__name__}{hint}")
        config = super().__new__(chosen)
        config.of_saved_adapter = True
        return config

    def __post_init__(self) -> None:
        super().__post_init__()
        from peft.utils.peft_types import PeftType

        self.peft_type = getattr(PeftType, PEFT_TYPE_NAME)
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # PEFT matches against a set
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("layers_pattern has no effect without layers_to_transform; set both or neither")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ConfigError("layers_to_transform needs target_modules as a list of names, not a string")
        _require_int("r", self.r, 1)
        for pattern, r in self.rank_pattern.items():
            _require_int(f"rank_pattern[{pattern!r}]", r, 1)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.placement not in PLACEMENT_MODES:
            raise ConfigError(f"placement must be one of {', '.join(PLACEMENT_MODES)}, got {self.placement!r}")
        if not 0 <= self.global_share <= 1:
            raise ConfigError(f"global_share must lie in [0, 1], got {self.global_share}")

        for fraction in self.repartition:
            if not 0 < fraction <= 1:
                raise ConfigError(f"repartition holds fractions of training in (0, 1], got {fraction}")
        _require_int("repartition_every", self.repartition_every, 0)
        if self.repartition and self.repartition_every:
            raise ConfigError("set repartition (fractions) or repartition_every (steps), not both")
        for key, value, choices in (
            ("repartition_place", self.repartition_place, REPARTITION_PLACES),
            ("frozen", self.frozen, FROZEN_MODES),
        ):
            if value not in choices:
                raise ConfigError(f"{key} must be one of {', '.join(choices)}, got {value!r}")
        for key in ("frozen_rank", "rewarm", "consolidated_rank"):
            _require_int(key, getattr(self, key), 0)
        if self.frozen == "merged" and self.frozen_rank:
            raise ConfigError(
                "frozen_rank bounds what stays beside the base weights, and frozen='merged' leaves nothing there; set "
                "one of them, and give export_lora a rank to bound the export's"
            )

    def repartition_steps(self, total_steps: int) -> list[int]:
        """The optimizer steps, of 1..total_steps, after which there is an event."""
        if self.repartition_every:
            return list(range(self.repartition_every, total_steps, self.repartition_every))
        return sorted({max(1, math.ceil(fraction * total_steps)) for fraction in self.repartition})

    def layer_budget(self, m: int, n: int, r: int) -> LayerBudget:
        """The fixed shapes of the adapter of one m x n matrix at LoRA-equivalent rank r.

        Raises:
            BudgetError: the settings do not fit the matrix; the message names the nearest that do.
        """
        raise NotImplementedError

    def layer_rank(self, name: str) -> int:
        """The LoRA-equivalent rank of the layer called `name`: from `rank_pattern` where it matches, else r."""
        return self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), name), self.r)

    def layer_scale(self, name: str) -> float:
        """s in dW = s B A for the layer called `name`: alpha / r, or alpha / sqrt(r) with rank-stabilised scaling."""
        alpha = self.alpha_pattern.get(get_pattern_key(list(self.alpha_pattern), name), self.alpha)
        r = self.layer_rank(name)
        return alpha / math.sqrt(r) if self.use_rslora else alpha / r


@dataclass
class GlobalLocalLoraConfig(LocalizedConfig):
    """G-LoRA: a low-rank term over the whole matrix and a higher-rank term on the block of important rows and columns.

    Shared arguments are those of :class:`LocalizedConfig`. With `global_share=1.0` this is plain LoRA.

    Args:
        global_share: share of the rank for the global term (default one half).
        local_size: share of the rows, and of the columns, in the block; in (0, 1]. The block's rank follows from the
            budget: a quarter of rows and columns at half the rank gives a block of twice the LoRA rank.
        refine: times the scores are taken again within the chosen block, rows over chosen columns and columns over
            chosen rows; each costs another pass over the calibration batches.

    Reference: Jiahao Xiong et al., G-LoRA: Global-Local Decoupled Low-Rank Adaptation, Findings of ACL 2026.
    """

    method: str = field(default="g-lora", metadata={"help": "Which method this config is; do not change."})  # type: ignore[misc]
    global_share: float = field(default=0.5, metadata={"help": "Share of the rank for the whole matrix."})
    local_size: float = field(default=0.25, metadata={"help": "Share of rows and of columns in the block."})
    refine: int = field(default=0, metadata={"help": "Re-scoring passes within the chosen block."})

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_method(self, "g-lora")
        if not 0 < self.local_size <= 1:
            raise ConfigError(f"local_size must lie in (0, 1], got {self.local_size}")
        _require_int("refine", self.refine, 0)

    def layer_budget(self, m: int, n: int, r: int) -> LayerBudget:
        return global_local_budget(m, n, r, self.global_share, self.local_size)


@dataclass
class CpsLoraConfig(LocalizedConfig):
    """CPS-LoRA: rows and columns are co-clustered and each cluster gets its own low-rank term.

    Shared arguments are those of :class:`LocalizedConfig`. With `global_share` above 0 this is the hybrid of a global
    term and clusters; with `clusters=1` it is plain LoRA.

    Args:
        clusters: K, the number of row-and-column clusters, 1..127.
        balance: 0 leaves the sizes of the clusters free, 1 makes them equal.
        sketch: width s of the gradient sketch that the clusters are found on.
        probe_steps: above 0, calibration finds the clusters in the update of a probe instead: a plain LoRA trained for
            so many steps, one batch each, and thrown away (see :mod:`localora.lifecycle.probe`). Events of re-partition
            plan on a gradient and would undo what it found: set `repartition_place="kept"`, or
            `repartition_signal="delta"`.
        probe_rank: rank of the probe; 0 means twice K times the rank of the clusters' terms.
        probe_lr: learning rate of the probe, with Adam, constant; its update has scale 1.
        repartition_signal: what an event co-clusters: "gradient", the sketch at that moment; "delta", the update since
            the last event; or "both", update and gradient step together, each at equal weight.

    Reference: Jiahao Xiong et al., Localized Low-Rank Adaptation within Clustered Parameter Subspaces, ACL 2026.
    """

    method: str = field(default="cps-lora", metadata={"help": "Which method this config is; do not change."})  # type: ignore[misc]
    clusters: int = field(default=4, metadata={"help": "Number of clusters K."})
    balance: float = field(default=0.5, metadata={"help": "0: free sizes, 1: equal sizes."})
    sketch: int = field(default=64, metadata={"help": "Width of the gradient sketch."})
    probe_steps: int = field(default=0, metadata={"help": "Steps of a probe that the clusters are found in; 0: none."})
    probe_rank: int = field(default=0, metadata={"help": "Rank of the probe; 0: twice that of all clusters."})
    probe_lr: float = field(default=3e-3, metadata={"help": "Learning rate of the probe."})
    repartition_signal: RepartitionSignal = field(default="gradient", metadata={"help": "gradient | delta | both"})

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_method(self, "cps-lora")
        _require_int("clusters", self.clusters, 1)
        _require_int("sketch", self.sketch, 1)
        _require_int("probe_steps", self.probe_steps, 0)
        _require_int("probe_rank", self.probe_rank, 0)
        if not self.probe_lr > 0:
            raise ConfigError(f"probe_lr must be above 0, got {self.probe_lr}")
        if self.clusters > MAX_CLUSTERS:
            raise ConfigError(f"clusters must be at most {MAX_CLUSTERS}, got {self.clusters}")
        if not 0 <= self.balance <= 1:
            raise ConfigError(f"balance must lie in [0, 1], got {self.balance}")
        if self.repartition_signal not in REPARTITION_SIGNALS:
            raise ConfigError(
                f"repartition_signal must be one of {', '.join(REPARTITION_SIGNALS)}, got {self.repartition_signal!r}"
            )
        found_anew = (self.repartition or self.repartition_every) and self.repartition_place == "found"
        if self.probe_steps and found_anew and self.repartition_signal != "delta":
            raise ConfigError(
                "probe_steps finds clusters that a gradient does not show, and events would plan them anew on a "
                "gradient; set repartition_place='kept', or repartition_signal='delta'"
            )

    def layer_budget(self, m: int, n: int, r: int) -> LayerBudget:
        return clustered_budget(m, n, r, self.global_share, self.clusters)


def _config_class(method: object) -> type[LocalizedConfig]:
    classes = {"g-lora": GlobalLocalLoraConfig, "cps-lora": CpsLoraConfig}
    if method not in classes:
        raise ConfigError(
            f"the adapter config names the method {method!r}; localora knows {', '.join(classes)}. "
            "Build GlobalLocalLoraConfig or CpsLoraConfig"
        )
    return classes[str(method)]


def _require_int(name: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise BudgetError(f"{name} must be an integer of at least {low}, got {value!r}")


def _require_method(config: GlobalLocalLoraConfig | CpsLoraConfig, method: str) -> None:
    if config.method != method:
        raise ConfigError(f"{type(config).__name__} is the config of {method!r}, not of {config.method!r}")
