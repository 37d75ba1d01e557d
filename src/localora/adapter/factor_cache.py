"""Dense factors kept over forward passes between which no weight changes, as those of one generation.

One token's forward pass is too short to scatter the packed factors in: at batch 4 that took longer than the update.
They are not kept beyond a block that somebody opens, since a weight can be written where no version counter sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from localora.adapter.factors import Factors


class FactorCache:
    """What one model's layers keep while a block is open: from its second pass on, so a single pass keeps nothing."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Factors | None] | None = None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Blocks nest: the outermost drops everything at its end."""
        if self._kept is not None:
            yield
            return
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def drop(self) -> None:
        """Forget what is kept so far: it was made of what the base weight holds no more, or holds by now."""
        if self._kept is not None:
            self._kept.clear()

    def again(self, key: Hashable) -> bool:
        """Whether the block that is open has met the key before: in a generation, from its second token on."""
        if self._kept is None:
            return False
        met = key in self._kept
        self._kept.setdefault(key, None)
        return met

    def factors(self, key: Hashable, make: Callable[[], Factors]) -> Factors:
        kept = self._kept  # once: another thread may close the block meanwhile
        if kept is None:
            return make()
        found = kept.get(key)
        if found is None:
            found = make()
            kept[key] = found if key in kept else None
        return found


@contextmanager
def hold_factors(model: nn.Module) -> Iterator[None]:
    """Inside, from the second forward pass without gradient on, no layer makes its dense factors again.

    They take K r (m + n) numbers a layer, of the activations' dtype. What is written to adapter weights or labels
    inside may show only after the block. Passes with gradient never use kept factors. `generate` of a PEFT model opens
    a block by itself; open one around a decoding loop of your own, or around `generate` of a model whose adapter was
    injected.
    """
    caches = [c for module in model.modules() if isinstance(c := getattr(module, "factor_cache", None), FactorCache)]
    with ExitStack() as stack:
        for cache in caches:  # mostly one and the same, and blocks nest
            stack.enter_context(cache.opened())
        yield
