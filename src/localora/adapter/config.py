"""The two configs users write, G-LoRA and CPS-LoRA: both of PEFT type LOCALIZED, each loads back as what it was.

Each option is stated here once, with its default, its range and its help: see :mod:`localora.adapter.options`.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors import safe_open

from localora.adapter.card import complete_card
from localora.adapter.options import LARGEST_RANK, option, options_of
from localora.adapter.patterns import MOST_PATTERNS, check_pattern
from localora.adapter.peft_names import accept_peft_names
from localora.errors import ConfigError
from localora.placement.budget import LayerBudget, clustered_budget, global_local_budget
from localora.placement.partition import MAX_CLUSTERS

PEFT_TYPE_NAME = "LOCALIZED"
ALPHA_PER_RANK = 2.0  # alpha is so many times r where it is not set
PlacementMode = Literal["calibrate", "random", "contiguous"]
RepartitionPlace = Literal["found", "random", "kept"]
FrozenMode = Literal["factors", "merged"]


@dataclass
class LocalizedConfig(PeftConfig):
    """What both methods share. Not built directly, except by PEFT when it loads an `adapter_config.json`.

    Args:
        r: LoRA-equivalent rank. The adapter trains what LoRA of this rank trains, within 0.5 %.
        alpha: scaling numerator. The update is scaled by alpha / r, or alpha / sqrt(r) with `use_rslora`, where r is
            the LoRA-equivalent rank of the layer; global and local terms share this scale. None means 2 r of each
            layer, so that `rank_pattern` changes no layer's scale; a number is the same for all layers, as in
            `peft.LoraConfig`. `lora_alpha` is another name of it, as `lora_dropout` is of `dropout`.
        dropout: probability of dropping an input of the adapter (not of the base layer).
        use_rslora: scale by alpha / sqrt(r).
        target_modules: names, suffixes or a regular expression of the layers to adapt, or "all-linear"; None takes
            PEFT's default for the architecture.
        target_parameters: names or suffixes of experts' stacked weights to adapt, each expert by itself, such as
            "mlp.experts.gate_up_proj" (see :mod:`localora.adapter.experts`).
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
        repartition_every: events every N optimizer steps instead; 0 turns it off.
        repartition_place: labels after an event: "found" by the method's planner on the present gradient, "random", or
            "kept".
        frozen: where the updates of past events are: "factors" beside the live ones, or "merged" into the base weights
            in memory, with the factors kept on the CPU; that a quantized base refuses.
        frozen_rank: upper bound of that frozen term's rank, kept by SVD, whose error the event states; 0 means none.
        consolidated_rank: rank of the frozen term so far, the same in every layer; written by the library.

    Raises:
        ConfigError: when the config is built, any value outside its range, and any option that is not known here; with
            the nearest that is, or why one of `peft.LoraConfig` is not supported.
    """

    method: ClassVar[str]
    title: ClassVar[str]
    planner: ClassVar[str]  # which of :data:`localora.lifecycle.planning.PLANNERS` finds its placements
    of_saved_adapter = False  # built by PEFT from an adapter's folder, whose labels are read and never planned again

    r: int = option(16, "LoRA-equivalent rank: the parameters of LoRA at this rank", ge=1, le=LARGEST_RANK)
    alpha: float | None = option(None, "scale numerator; 2 r when left out", gt=0)
    dropout: float = option(0.0, "on the adapter's input", ge=0, lt=1)
    use_rslora: bool = option(False, "scale by alpha / sqrt(r) instead of alpha / r")
    target_modules: list[str] | str | None = option(None, "layers to adapt: names, a regular expression, or all-linear")
    target_parameters: list[str] | None = option(None, "stacked weights of experts to adapt, each by itself")
    exclude_modules: list[str] | str | None = option(None, "layers to leave out", recipe=False)
    layers_to_transform: list[int] | int | None = option(None, "indices of blocks to adapt", ge=0, recipe=False)
    layers_pattern: list[str] | str | None = option(None, "name of the list of blocks", recipe=False)
    rank_pattern: dict[str, int] = option(dict, "layer name or regular expression to its own r", ge=1, recipe=False)
    alpha_pattern: dict[str, float] = option(dict, "layer name or regular expression to its alpha", gt=0, recipe=False)
    modules_to_save: list[str] | None = option(None, "modules trained and saved in full", recipe=False)
    global_share: float = option(0.0, "share of the rank in the whole-matrix term", ge=0, le=1)
    placement: PlacementMode = option("calibrate", "how the local term gets its place")
    seed: int = option(0, "seed of placements and sketches", ge=0, recipe=False)
    init_weights: bool = option(True, "start from a zero update; False is for tests", recipe=False)
    repartition: list[float] = option(list, "fractions of training at which events happen", gt=0, le=1)
    repartition_every: int = option(0, "events every N optimizer steps instead; 0: off", ge=0)
    repartition_place: RepartitionPlace = option("found", "labels after an event")
    frozen: FrozenMode = option("factors", "past updates: beside the base weights, or merged into them")
    frozen_rank: int = option(0, "upper bound of the rank of past updates, kept by SVD; 0: none", ge=0)
    consolidated_rank: int = option(0, "rank of the frozen term; written by the library", ge=0, recipe=False)

    def __new__(cls, *args: Any, **kwargs: Any) -> LocalizedConfig:
        # PEFT knows one config class per type and builds it from the saved keys; `method` says which of ours it was.
        if cls is not LocalizedConfig:
            return super().__new__(cls)
        method = kwargs.get("method")
        if not isinstance(method, str) or method not in METHODS:
            raise ConfigError(
                f"the adapter config names the method {method!r}; localora knows {', '.join(METHODS)}. Build "
                "GLoraConfig or CpsLoraConfig"
            )
        config = super().__new__(METHODS[method])
        config.of_saved_adapter = True
        return config

    def __post_init__(self) -> None:
        for each in options_of(type(self)).values():
            each.check(getattr(self, each.name))
        super().__post_init__()  # type: ignore[no-untyped-call]
        from peft.utils.peft_types import PeftType

        self.peft_type = getattr(PeftType, PEFT_TYPE_NAME)
        own = options_of(type(self))["method"].default
        if self.method != own:
            raise ConfigError(f"{type(self).__name__} is the config of {own!r}, not of {self.method!r}")
        self._check_patterns()
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("layers_pattern has no effect without layers_to_transform; set both or neither")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ConfigError("layers_to_transform needs target_modules as a list of names, not a string")
        if self.target_parameters and self.dropout:
            raise ConfigError(
                "dropout must be 0 with target_parameters: an expert's update is added to its weight, not made of its "
                "tokens, so they cannot be dropped one by one"
            )
        if self.repartition and self.repartition_every:
            raise ConfigError("set repartition (fractions) or repartition_every (steps), not both")
        if self.frozen == "merged" and self.frozen_rank:
            raise ConfigError(
                "frozen_rank bounds what stays beside the base weights, and frozen='merged' leaves nothing there; set "
                "one of them, and give export_lora a rank to bound the export's"
            )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> PeftConfig:
        """As PEFT's, for a folder or a Hub id; PEFT comes here before it makes room for the adapter's tensors.

        Raises:
            ConfigError: options that no adapter has.
            AdapterFileError: the tensors beside the config are not those that it describes, or are pickled.
        """
        from localora.adapter.adapter_file import CONFIG, check_before_loading, check_config_file

        folder = Path(pretrained_model_name_or_path, subfolder or "")
        local = (folder / CONFIG).is_file()
        if local:
            check_config_file(folder / CONFIG)
        config: PeftConfig
        try:
            config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise (ConfigError(f"{folder / CONFIG}: {error}") if local else error) from None
        if local and isinstance(config, LocalizedConfig):
            check_before_loading(folder, config)
        return config

    def _check_patterns(self) -> None:
        for key in ("target_modules", "exclude_modules"):
            if isinstance(value := getattr(self, key), str):
                check_pattern(key, value)
            elif value is not None:
                setattr(self, key, set(value))  # PEFT matches against a set
        for key in ("rank_pattern", "alpha_pattern"):
            expressions = getattr(self, key)
            if len(expressions) > MOST_PATTERNS:
                raise ConfigError(
                    f"{key} has {len(expressions):,} entries; {MOST_PATTERNS:,} may be tried on each layer"
                )
            for expression in expressions:
                check_pattern(key, expression, as_matched=rf"(.*\.)?({expression})$")
        blocks = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern or ()
        for expression in blocks:
            check_pattern("layers_pattern", expression, as_matched=rf".*\.{expression}\.(\d+)\.")

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As PEFT's. With an adapter's weights in the folder, its model card is completed, for people who find it."""
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        if (folder / SAFETENSORS_WEIGHTS_NAME).exists():
            self._warn_of_others(folder / SAFETENSORS_WEIGHTS_NAME)
            complete_card(folder, self)

    def _warn_of_others(self, weights: Path) -> None:
        """PEFT adds the embedding and the head where the vocabulary was resized, which our loaders then refuse."""
        with safe_open(weights, framework="pt") as file:
            others = [key for key in file.keys() if ".localized_" not in key]  # noqa: SIM118 (it is no dict)
        strangers = [key for key in others if not any(f".{name}." in key for name in self.modules_to_save or ())]
        if strangers:
            warnings.warn(
                f"{weights} also holds {strangers[0]}: was the vocabulary resized? This adapter will not load again. "
                "Name such modules in modules_to_save, or save with save_embedding_layers=False, and the resized model "
                "beside it",
                stacklevel=3,
            )

    def repartition_steps(self, total_steps: int) -> list[int]:
        """The optimizer steps, of 1..total_steps, after which there is an event."""
        if self.repartition_every:
            return list(range(self.repartition_every, total_steps, self.repartition_every))
        # Rounded first: 0.55 * 100 is a little more than 55.
        return sorted({max(1, math.ceil(round(fraction * total_steps, 6))) for fraction in self.repartition})

    def layer_budget(self, m: int, n: int, r: int) -> LayerBudget:
        """The fixed shapes of the adapter of one m x n matrix at LoRA-equivalent rank r.

        No matrix is too small: its budget says what it got instead of what was asked for.
        """
        raise NotImplementedError

    def stack_of(self, name: str) -> tuple[str, int] | None:
        """Of which stacked weights, and of which expert of them, the layer called `name` is; None of a linear layer."""
        stack, _, index = name.rpartition(".")
        targets = self.target_parameters or ()
        is_expert = index.isdigit() and any(f".{stack}".endswith(f".{target}") for target in targets)
        return (stack, int(index)) if is_expert else None

    def _in_patterns(self, name: str) -> str:
        """Experts of one stack share its name there, as in PEFT's LoRA."""
        found = self.stack_of(name)
        return name if found is None else found[0]

    def layer_rank(self, name: str) -> int:
        """The LoRA-equivalent rank of the layer called `name`: from `rank_pattern` where it matches, else r."""
        return self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), self._in_patterns(name)), self.r)

    def layer_scale(self, name: str) -> float:
        """s in dW = s B A for the layer called `name`: alpha / r, or alpha / sqrt(r) with rank-stabilised scaling."""
        alpha = self.alpha_pattern.get(get_pattern_key(list(self.alpha_pattern), self._in_patterns(name)), self.alpha)
        r = self.layer_rank(name)
        alpha = ALPHA_PER_RANK * r if alpha is None else alpha
        return alpha / math.sqrt(r) if self.use_rslora else alpha / r


@accept_peft_names
@dataclass
class GLoraConfig(LocalizedConfig):
    """G-LoRA: a low-rank term over the whole matrix and a higher-rank term on the block of important rows and columns.

    Shared arguments are those of :class:`LocalizedConfig`. With `global_share=1.0` this is plain LoRA.

    Args:
        global_share: share of the rank for the global term (default one half).
        local_size: share of the rows, and of the columns, in the block; in (0, 1]. The block's rank follows from the
            budget: a quarter of rows and columns at half the rank gives a block of twice the LoRA rank.

    PEFT's own `GloraConfig` is another method of a similar name.

    Reference: Jiahao Xiong et al., G-LoRA: Global-Local Decoupled Low-Rank Adaptation, Findings of ACL 2026.
    """

    title: ClassVar[str] = "G-LoRA"
    planner: ClassVar[str] = "taylor"

    method: str = option("g-lora", "which method this config is; do not change", recipe=False)  # type: ignore[misc]
    global_share: float = option(0.5, "share of the rank in the whole-matrix term; 1 is LoRA", ge=0, le=1)
    local_size: float = option(0.25, "share of rows, and of columns, in the block", gt=0, le=1)

    def layer_budget(self, m: int, n: int, r: int) -> LayerBudget:
        return global_local_budget(m, n, r, self.global_share, self.local_size)


@accept_peft_names
@dataclass
class CpsLoraConfig(LocalizedConfig):
    """CPS-LoRA: rows and columns are co-clustered and each cluster gets its own low-rank term.

    Shared arguments are those of :class:`LocalizedConfig`. With `global_share` above 0 this is the hybrid of a global
    term and clusters; with `clusters=1` it is plain LoRA.

    Args:
        clusters: K, the number of row-and-column clusters, 1..127.
        balance: 0 leaves the sizes of the clusters free, 1 makes them equal.
        sketch: width s of the gradient sketch that the clusters are found on.

    Reference: Jiahao Xiong et al., Localized Low-Rank Adaptation within Clustered Parameter Subspaces, ACL 2026.
    """

    title: ClassVar[str] = "CPS-LoRA"
    planner: ClassVar[str] = "coclustering"

    method: str = option("cps-lora", "which method this config is; do not change", recipe=False)  # type: ignore[misc]
    clusters: int = option(4, "number of clusters K", ge=1, le=MAX_CLUSTERS)
    balance: float = option(0.5, "0: free sizes, 1: equal sizes", ge=0, le=1)
    sketch: int = option(64, "width of the gradient sketch that clusters are found on", ge=1)

    def layer_budget(self, m: int, n: int, r: int) -> LayerBudget:
        return clustered_budget(m, n, r, self.global_share, self.clusters)


METHODS: dict[str, type[LocalizedConfig]] = {"g-lora": GLoraConfig, "cps-lora": CpsLoraConfig}
