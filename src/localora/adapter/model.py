"""The tuner model: puts adapter layers into a model, and places at once what waits for no planner."""

from __future__ import annotations

import copy
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, init_empty_weights  # type: ignore[attr-defined, unused-ignore]
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, _get_submodules
from peft.utils.quantization_utils import get_quantization_kwargs
from torch import Tensor, nn

from localora.adapter.config import LocalizedConfig
from localora.adapter.experts import LocalizedExperts, match_stacks, warn_of_stacks_left_out
from localora.adapter.factor_cache import FactorCache
from localora.adapter.layer import UNPLACED_ADDS, LocalizedLinear
from localora.adapter.mixed_batch import samples_use
from localora.adapter.state_check import FirstUse, check_state, folded_as_frozen, match_frozen, match_whole_state
from localora.adapter.status import adapted_layers
from localora.adapter.targets import (
    NoMatchingPeftModuleError,
    TargetError,
    check_not_fused,
    check_supported,
    keep_readable,
    linear_layers_of,
    tell_of_targets,
)
from localora.adapter.weighted import weighted_config, weighted_factors
from localora.errors import AdapterError, LocaloraError
from localora.placement.partition import Partition
from localora.placement.random import contiguous_partition, random_partition
from localora.placement.thin import padded

FSDP1 = "_fsdp_wrapped_module."  # in the name of a module inside one that FSDP1 wraps


class LocalizedModel(BaseTuner):
    """PEFT's tuner model of type LOCALIZED; users meet it through `get_peft_model`."""

    prefix = "localized_"
    tuner_layer_cls = LocalizedLinear
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # type: ignore[assignment]

    @cached_property
    def factor_cache(self) -> FactorCache:
        """One of all layers, so that opening a block costs nothing."""
        return FactorCache()

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config = self.peft_config[adapter_name]
        assert isinstance(config, LocalizedConfig)  # of PEFT type LOCALIZED
        asked = config.target_modules
        keep_readable(model)
        if not adapter_name or "." in adapter_name:
            raise AdapterError(f"an adapter's name is part of its tensors' names, so it has no dots: {adapter_name!r}")
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except LocaloraError:
            raise
        except NoMatchingPeftModuleError as error:
            raise TargetError(f"{error} {linear_layers_of(model)}") from error
        if config.of_saved_adapter:
            FirstUse(model, config, adapter_name)
        else:
            tell_of_targets(model, adapter_name, config)
            if asked == "all-linear":
                warn_of_stacks_left_out(model, adapter_name)
        if any(other is config for name, other in self.peft_config.items() if name != adapter_name):
            self.peft_config[adapter_name] = copy.copy(config)  # its events are not the other's

    def _create_and_replace(
        self,
        peft_config: LocalizedConfig,  # type: ignore[override]
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if isinstance(target, LocalizedLinear):
            layer = target
        else:
            quantization = get_quantization_kwargs(self)
            check_supported(target, current_key, quantization)
            layer = LocalizedLinear(target, **quantization)
        self._add_to_layer(layer, adapter_name, peft_config, current_key)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _inject_parameters(
        self, peft_config: PeftConfig, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        """An adapter for each expert of the stacks that `target_parameters` names; PEFT calls this at injection."""
        assert isinstance(peft_config, LocalizedConfig)
        found = match_stacks(model, peft_config)
        for key, module in found.items():
            name, _, parameter = key.rpartition(".")
            parent, target, target_name = _get_submodules(model, name)
            experts = target if isinstance(target, LocalizedExperts) else LocalizedExperts(module)
            with init_empty_weights() if low_cpu_mem_usage else nullcontext():
                for index, layer in enumerate(experts.add_stack(parameter)):
                    self._add_to_layer(layer, adapter_name, peft_config, f"{key}.{index}")
            setattr(parent, target_name, experts)
        return list(found)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(new_module, LocalizedLinear):
            super()._replace_module(parent, child_name, new_module, child)
        else:  # the base module, unloaded: PEFT would set its `weight`, which not all have, to itself
            setattr(parent, child_name, new_module)

    def _add_to_layer(self, layer: LocalizedLinear, name: str, config: LocalizedConfig, key: str) -> None:
        new = not layer.localized_layout
        if new:
            layer._active_adapter, layer.factor_cache = self.active_adapter, self.factor_cache
        budget = config.layer_budget(layer.out_features, layer.in_features, config.layer_rank(key))
        layer.add_adapter(
            name,
            budget,
            scale=config.layer_scale(key),
            dropout=config.dropout,
            zero_init=config.init_weights,
            inference_mode=config.inference_mode,
        )
        if config.consolidated_rank:
            layer.allocate_frozen(name, config.consolidated_rank)
        if new and name not in self.active_adapters:
            layer.requires_grad_(False)  # an additional adapter does not train until it is activated
        self._place_at_once(layer, name, config, key)
        if config.of_saved_adapter:
            # A loader may now write other labels straight into the buffers: they are checked at their first use.
            layer.localized_verified[name] = budget.local is None

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        assert isinstance(peft_config, LocalizedConfig)
        unknown = model_config.get("model_type") not in self.target_module_mapping
        if peft_config.target_modules is None and peft_config.target_parameters and unknown:
            return peft_config  # experts alone
        return super()._prepare_adapter_config(peft_config, model_config)

    def _place_at_once(self, layer: LocalizedLinear, name: str, config: LocalizedConfig, key: str) -> None:
        budget = layer.localized_layout[name].budget
        local = budget.local
        if local is None:
            return
        # A reference copy, as TRL's DPO and GRPO make it, is a second adapter on the very same config object; they copy
        # its parameters but not its buffers, so the labels are cloned here.
        for other, other_config in self.peft_config.items():
            if other != name and other_config is config and other in layer.localized_row_labels:
                layer.localized_row_labels[name].copy_(layer.localized_row_labels[other])
                layer.localized_col_labels[name].copy_(layer.localized_col_labels[other])
                frozen = layer.frozen_factors(other)
                if frozen is not None:
                    layer.set_frozen(
                        name, *(factor.to(next(layer.parameters()).device, copy=True) for factor in frozen)
                    )
                return
        m, n = layer.out_features, layer.in_features
        if not budget.has_choice:
            layer.place(name, Partition.whole(m, n))  # this is LoRA
        elif config.of_saved_adapter:
            return  # unplaced until its file is read; were the file's labels missing, nothing would make up others
        elif config.placement == "contiguous":
            layer.place(name, contiguous_partition(m, n, local))
        elif config.placement == "random":
            seed = config.seed + zlib.crc32(key.encode())  # layers differ, runs do not
            layer.place(name, random_partition(m, n, local, seed))

    def _check_target_module_compatiblity(self, peft_config: PeftConfig, model: nn.Module, target_name: str) -> None:
        check_not_fused(model, target_name)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        if names is not None:
            with samples_use(self, names, kwargs.get("num_beams")), self.factor_cache.opened():
                yield
            return
        if torch.compiler.is_compiling():
            yield
            return
        # PEFT enters here for a forward pass, of which nothing is kept, and for `generate`.
        with self.factor_cache.opened():
            yield

    def add_weighted_adapter(
        self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str, combination_type: str = "linear"
    ) -> None:
        """A new adapter whose update is the weighted sum of others': exact, as its frozen term, of their ranks' sum.

        Raises:
            AdapterError: an unknown adapter, a name that is taken, or adapters and weights that cannot be summed.
        """
        unknown = [name for name in adapters if name not in self.peft_config]
        if unknown or adapter_name in self.peft_config:
            problem = f"there is no adapter {unknown[0]!r}" if unknown else f"{adapter_name!r} is taken"
            raise AdapterError(f"{problem}; the model has {', '.join(self.peft_config)}")
        layers = [module for module in self.model.modules() if isinstance(module, LocalizedLinear)]
        configs = [config for name in adapters if isinstance(config := self.peft_config[name], LocalizedConfig)]
        held = [name for adapter in adapters for name, _ in adapted_layers(self.model, adapter)]
        config = weighted_config(configs, weights, combination_type, held)
        factors = {layer: weighted_factors(layer, adapters, weights) for layer in layers}
        config.consolidated_rank = rank = max(len(A) for A, _ in factors.values())
        self.peft_config[adapter_name] = config
        try:
            self.inject_adapter(self.model, adapter_name)
            for _, layer in adapted_layers(self.model, adapter_name):
                layer.set_frozen(adapter_name, *padded(*factors[layer], rank))
        except Exception:
            self.delete_adapter(adapter_name)
            raise

    def unload(self) -> nn.Module:
        for layer in self.model.modules():
            if isinstance(layer, LocalizedLinear):
                for name in list(layer.localized_folded):
                    layer.unfold(name)
        return super().unload()

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        cls.before_saving(model, adapter_name)
        state_dict = folded_as_frozen(state_dict, adapter_name)
        found = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        # PEFT looks for the names that FSDP1 has in the model, and its whole state has the model's own.
        own = {name.replace(FSDP1, "") for name, _ in adapted_layers(model, adapter_name) if FSDP1 in name}
        return found | {key: value for key, value in state_dict.items() if key.partition(".localized_")[0] in own}

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name, config in self.peft_config.items():
            assert isinstance(config, LocalizedConfig)
            match_whole_state(self.model, config, name, state_dict, f"{prefix}model.")
        super()._load_from_state_dict(state_dict, prefix, *args)

    @staticmethod
    def before_saving(model: nn.Module, adapter_name: str) -> None:
        """Warn of an adapter that was never placed."""
        waiting = [
            layer
            for _, layer in adapted_layers(model, adapter_name)
            if not (layer.localized_verified[adapter_name] or layer.localized_row_labels[adapter_name].is_meta)
        ]
        if any(layer.is_unplaced(adapter_name) for layer in waiting):
            warnings.warn(f"saving the adapter {adapter_name!r}, {UNPLACED_ADDS}", stacklevel=5)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        assert isinstance(config, LocalizedConfig)
        cls.before_loading(model, config, adapter_name, state_dict)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)

    @staticmethod
    def before_loading(
        model: nn.Module, config: LocalizedConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> None:
        """Make room for a saved frozen term, and refuse tensors that are not the whole of this adapter."""
        match_frozen(model, config, adapter_name, state_dict)
        check_state(model, config, adapter_name, state_dict)
