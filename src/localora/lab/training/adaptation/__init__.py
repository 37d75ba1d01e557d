"""How each method makes a base model trainable, what it does during training, and what it leaves on disk."""

from __future__ import annotations

from localora.lab.recipe.methods import LocalizedMethod
from localora.lab.recipe.peft_methods import AdaLoraMethod, FullMethod, LoraMethod, MethodBase
from localora.lab.recipe.schema import Recipe
from localora.lab.training.adaptation.adalora import AdaLora
from localora.lab.training.adaptation.base import Adaptation, FullFineTuning
from localora.lab.training.adaptation.localized import LocalizedAdapter
from localora.lab.training.adaptation.moved_base import MovedBaseAdapter
from localora.lab.training.folder import RunFolder


def adaptation_of(recipe: Recipe, folder: RunFolder) -> Adaptation:
    """The adaptation that the recipe's method asks for, for one run in `folder`."""
    return _class_of(recipe.method)(recipe, folder)


def _class_of(method: MethodBase) -> type[Adaptation]:
    if isinstance(method, FullMethod):
        return FullFineTuning
    if isinstance(method, LocalizedMethod):
        return LocalizedAdapter
    if isinstance(method, AdaLoraMethod):
        return AdaLora
    return MovedBaseAdapter if isinstance(method, LoraMethod) and method.moves_base else Adaptation
