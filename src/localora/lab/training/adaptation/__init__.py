"""How each method makes a base model trainable, what it does during training, and what it leaves on disk."""

from __future__ import annotations

from localora.lab.recipe.methods import LocalizedMethod
from localora.lab.recipe.peft_methods import AdaLoraMethod, FullMethod
from localora.lab.recipe.schema import Recipe
from localora.lab.training.adaptation.adalora import AdaLora
from localora.lab.training.adaptation.base import Adaptation, FullFineTuning
from localora.lab.training.adaptation.localized import LocalizedAdapter
from localora.lab.training.adaptation.moved_base import MovedBaseAdapter
from localora.lab.training.folder import RunFolder


def adaptation_of(recipe: Recipe, folder: RunFolder) -> Adaptation:
    """The adaptation that the recipe's method asks for, for one run in `folder`."""
    method, chosen = recipe.method, Adaptation
    if isinstance(method, FullMethod):
        chosen = FullFineTuning
    elif isinstance(method, LocalizedMethod):
        chosen = LocalizedAdapter
    elif isinstance(method, AdaLoraMethod):
        chosen = AdaLora
    elif method.moves_base:
        chosen = MovedBaseAdapter
    return chosen(recipe, folder)
