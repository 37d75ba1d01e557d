"""The gradient of the adapted layers as ordinary training shows it, summed from one re-partition to the next."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import Tensor

from localora.adapter.config import CpsLoraConfig
from localora.adapter.layer import LocalizedLinear
from localora.lifecycle.observe import Observer, observe_gradients
from localora.lifecycle.passes import Layers
from localora.placement.accumulated import AccumulatedGradient
from localora.placement.signals import SharedInputs


class TrainingSignal:
    """One sketch a layer, on the layer's device, fed by the training loop's own backward passes.

    A micro-step costs one sketch a layer: 6 T s (m + n) operations beside the 4 T m n of the layer itself.
    """

    def __init__(self, layers: Layers, config: CpsLoraConfig) -> None:
        self.layers, self.config = layers, config
        self.inputs = SharedInputs()
        self._gradients: dict[str, AccumulatedGradient] | None = None

    @property
    def gradients(self) -> dict[str, AccumulatedGradient]:
        """By layer; made when first needed, so that those of an event are gone before the next ones take memory."""
        if self._gradients is None:
            self._gradients = {key: self._from_nothing(layer) for key, layer in self.layers.items()}
        return self._gradients

    def observing(self) -> AbstractContextManager[None]:
        """Put around forward and backward."""
        return observe_gradients({layer.get_base_layer(): self._observer(key) for key, layer in self.layers.items()})

    def end_step(self) -> None:
        """Call after every optimizer step."""
        self.inputs.forget()
        for gradient in self.gradients.values():
            gradient.end_step()

    def take(self) -> dict[str, AccumulatedGradient]:
        """What was accumulated, by layer; the next event starts from nothing."""
        taken, self._gradients = self.gradients, None
        return taken

    def state_dict(self) -> dict[str, Tensor]:
        """Everything accumulated, as tensors on the CPU; to be taken between steps."""
        return {
            f"{key}.{field}": tensor.cpu().contiguous()
            for key, gradient in self.gradients.items()
            for field, tensor in gradient.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from :meth:`state_dict`, whose keys and shapes have been found to fit."""
        for key, gradient in self.gradients.items():
            gradient.load_state_dict({field: state[f"{key}.{field}"] for field in gradient.state_dict()})

    def _from_nothing(self, layer: LocalizedLinear) -> AccumulatedGradient:
        return AccumulatedGradient(
            layer.out_features,
            layer.in_features,
            self.config.sketch,
            self.config.seed,
            normalise=self.config.repartition_normalise,
            device=next(layer.parameters()).device,
            inputs=self.inputs,
        )

    def _observer(self, key: str) -> Observer:
        layer = self.layers[key]

        def observe(x: Tensor, g: Tensor) -> None:
            if not layer.calibrating:  # another adapter's calibration is no training
                self.gradients[key].observe(x, g)

        return observe
