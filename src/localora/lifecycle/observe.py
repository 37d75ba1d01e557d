"""Watches the gradients of frozen weights during ordinary backward passes, without asking autograd for them.

Shape legend
    x   (..., n) input of a layer     y   (..., m) its output     g   dL/dy, the shape of y

A forward hook passes the layer's output through an identity whose backward sees x and g. x is saved for backward in
the ordinary way, so gradient checkpointing may drop and recompute it, and the observer runs once per real backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Observer = Callable[[Tensor, Tensor], None]  # called with x (T, n) and g (T, m)


class _Watch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x: Tensor, y: Tensor, observer: Observer) -> Tensor:
        ctx.save_for_backward(x)
        ctx.observer = observer
        return y.clone()  # a view of y could not be changed in place by the layer that follows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor, None]:
        (g,) = grads
        (x,) = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(g.device.type, enabled=False):
            ctx.observer(x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]))
        return None, None, g, None


@contextmanager
def watch_gradients(model: nn.Module, observers: Mapping[nn.Module, Observer]) -> Iterator[Callable[[], None]]:
    """While active, every backward pass through a layer of `observers` calls its observer with `(x, g)`.

    For passes that are made to observe and for nothing else: no parameter requires grad meanwhile, so nothing
    accumulates in any `.grad` and no gradient of a weight is formed; each parameter gets its own flag back at the end.
    Yields a function to call before each backward pass, which takes the flags away again: losses that need a reference
    switch the adapter off and on, and PEFT then sets them.
    """
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # The layers before the first trainable parameter have outputs that autograd would not follow; an anchor that
    # requires grad makes them followed.
    anchor = torch.zeros((), requires_grad=True)

    def watch(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        watched: Tensor = _Watch.apply(anchor, inputs[0].detach(), output, observers[layer])  # type: ignore[no-untyped-call]
        return watched

    def freeze(*_: Any) -> None:
        for parameter, _flag in required:
            parameter.requires_grad_(False)

    def follow(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        if torch.is_grad_enabled() and not output.requires_grad:
            output.requires_grad_(True)

    with ExitStack() as stack:
        for layer in observers:
            # Before the hooks of others, so in backward after them: ZeRO-3 has gathered the layer's weight by then.
            stack.callback(layer.register_forward_hook(watch, prepend=True).remove)
        get: Callable[[], nn.Module] | None = getattr(model, "get_input_embeddings", None)
        embeddings = get() if get else None
        if embeddings is not None:  # reentrant gradient checkpointing needs an input that requires grad
            stack.callback(embeddings.register_forward_hook(follow).remove)
        stack.callback(model.register_forward_pre_hook(freeze).remove)
        try:
            freeze()
            yield freeze
        finally:
            for parameter, flag in required:
                parameter.requires_grad_(flag)
