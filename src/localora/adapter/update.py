"""x W^T + dropout(x) A^T B^T, an adapted layer's whole work on activations, in as few passes and bytes as it takes.

Shape legend
    T   tokens      m, n   outputs and inputs      R   rank of the dense factors      c   rank of the frozen ones
    x   (T, n)      A      (R, n)      u = x A^T   (T, R)
    y   (T, m)      B      (m, R)      g = dL/dy   (T, m)

    forward     y <- y + u B^T
    backward    dB = g^T u      du = g B      dA = du^T x      dx = du A  (+ g W, with the frozen base weight W (m, n))

Frozen factors `(c, n)` and `(m, c)` join A and B in both products with activations, so there is still one pair of them,
and have no gradient: dA and dB are taken of the first R ranks.

The update is written into the base layer's output, so no second (T, m) tensor is made or added; and where the base
layer is plain and frozen its backward is done here too, so no second (T, n) gradient is. Saved for backward are
x, which neighbouring layers share, and with dropout one byte an input for the mask. u, A and B are kept too where they
with x are no more than PEFT's LoRA keeps: in half precision, beside its float32 copy of x, and with dropout, beside
its dropped-out one. Else A and B are made again from the packed factors, and so is u where clusters make it larger
than LoRA's.

Of many tokens the update is added to the weight instead, and one product does for all:

    forward     y = x (W + B A)^T           backward    dx = g (W + B A)

at 2 R mn for R T (m + n) multiplications. u is then made in backward alone, and the sum twice, since kept it would be a
second copy of the model. In float32 only: in half precision W + B A would round small updates away.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


def update_dtype(x: Tensor) -> torch.dtype:
    """What an update of x is computed in: the activations' dtype, or autocast's where that is on.

    The thin factors are cast to it, not the activations to the factors': the weights that the optimizer sees stay in
    their own precision, and no pass is spent on casting x.
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype.is_floating_point:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


# From this many times mn / (m + n) tokens on, where both would take as many multiplications at one: adding also writes
# mn numbers that no cache holds. Measured with two cores and 576 to 1536 inputs and outputs: docs/lab-notebook.md.
MANY = 4


def many_tokens(x: Tensor, m: int, n: int) -> bool:
    """Whether :func:`multiply_once` takes less time for x `(..., n)` than the thin products, and is as exact."""
    return (
        not torch.compiler.is_compiling()  # its graph is for any number of tokens
        and x.numel() * (m + n) >= MANY * m * n * n
        and x.dtype == torch.float32
        and x.device.type == "cpu"  # measured nowhere else
        and torch.get_float32_matmul_precision() == "highest"
    )


class Origin(NamedTuple):
    """What A and B were made from, and how to make them again: parameters and buffers cost nothing to save."""

    packed: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    make: Callable[[], tuple[Tensor, Tensor]]


def add_update(
    y: Tensor,
    x: Tensor,
    A_Rn: Tensor,
    B_mR: Tensor,
    dropout: float = 0.0,
    origin: Origin | None = None,
    W_mn: Tensor | None = None,
    frozen: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """y `(..., m)` plus the update of x `(..., n)`; A and B are of x's :func:`update_dtype`.

    y may be overwritten: it must be the caller's own. Without an `origin`, A and B are saved as they are. With a frozen
    `W_mn`, of x's dtype, y must be x W^T as made without gradient, and what flows through it is added here. `frozen`
    factors, of any dtype, are added too and not trained; they are not dropped out, so with dropout they must come in an
    update of their own.
    """
    assert not (dropout and frozen)
    A_frozen, B_frozen = frozen or (None, None)
    keep = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - dropout) if dropout else None
    x = x.to(A_Rn.dtype)
    base = y if y.dtype == x.dtype and y.is_contiguous() and not _hooked(y) else y.new_zeros(y.shape, dtype=x.dtype)
    if not (dropout or frozen or torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type)):
        # Without what apply and autocast cost, which a single token feels.
        updated = _add_(base, x.reshape(-1, x.shape[-1]) @ A_Rn.T, B_mR)
    else:
        cast = torch.is_autocast_enabled(x.device.type)  # asked first: the context is a tenth of a small layer's pass
        with torch.autocast(x.device.type, enabled=False) if cast else nullcontext():
            updated = _Update.apply(  # type: ignore[no-untyped-call]
                base, x, A_Rn, B_mR, keep, 1 / (1 - dropout), origin, W_mn, None, A_frozen, B_frozen
            )
    return updated if base is y else y + updated.to(y.dtype)


def multiply_once(
    x: Tensor,
    A_Rn: Tensor,
    B_mR: Tensor,
    W_mn: Tensor,
    bias_m: Tensor | None,
    origin: Origin | None = None,
    frozen: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """x (W + B A)^T + bias `(..., m)`, all of one dtype, W and the bias frozen. The rest as :func:`add_update`."""
    if frozen is None and not torch.is_grad_enabled():
        return linear(x, torch.addmm(W_mn, B_mR, A_Rn), bias_m)
    out: Tensor = _Update.apply(None, x, A_Rn, B_mR, None, 1.0, origin, W_mn, bias_m, *(frozen or (None, None)))  # type: ignore[no-untyped-call]
    return out


def _hooked(y: Tensor) -> bool:
    """Whether y is what a full backward hook lets through, which autograd lets nobody write to."""
    return not torch.compiler.is_compiling() and type(y.grad_fn).__name__ == "BackwardHookFunctionBackward"


def _add_(y: Tensor, u_TR: Tensor, B_mR: Tensor) -> Tensor:
    y.view(-1, y.shape[-1]).addmm_(u_TR, B_mR.T)
    return y


class _Update(torch.autograd.Function):
    """Both forms: into y, or where that is None at once."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor | None,
        x: Tensor,
        A_Rn: Tensor,
        B_mR: Tensor,
        keep: Tensor | None,
        keep_scale: float,
        origin: Origin | None,
        W_mn: Tensor | None,
        bias_m: Tensor | None,
        A_cn: Tensor | None,
        B_mc: Tensor | None,
    ) -> Tensor:
        A_all, B_all = _beside(A_Rn, A_cn, 0), _beside(B_mR, B_mc, 1)
        ctx.once = y is None
        if y is None:
            assert W_mn is not None
            y, u_TR = linear(x, torch.addmm(W_mn, B_all, A_all), bias_m), None
        else:
            u_all = _scaled(_kept(x, keep).reshape(-1, x.shape[-1]) @ A_all.T, keep_scale)
            ctx.mark_dirty(y)
            _add_(y, u_all, B_all)
            # Of u the first R ranks are saved, as a copy: a view would keep all of it.
            u_TR = u_all if A_cn is None else u_all[:, : len(A_Rn)].clone()
        made_again = None if origin is None or _little(x, keep, u_TR, A_Rn, B_mR) else origin
        if made_again is not None and A_Rn.numel() + B_mR.numel() > sum(packed.numel() for packed in made_again.packed):
            u_TR = None
        # The packed factors and labels are saved for the sake of autograd's check that nobody has changed them.
        factors = (A_Rn, B_mR) if made_again is None else (*made_again.packed, *made_again.labels)
        ctx.save_for_backward(x, keep, W_mn, A_cn, B_mc, u_TR, *factors)
        ctx.make = None if made_again is None else made_again.make
        ctx.keep_scale = keep_scale  # dropout's 1 / (1 - p), applied to thin tensors only
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, keep, W_mn, A_cn, B_mc, u_TR, *factors = ctx.saved_tensors
        A_Rn, B_mR = factors if ctx.make is None else ctx.make()
        y_needed, x_needed, A_needed, B_needed, *_ = ctx.needs_input_grad
        thin = x_needed and not ctx.once  # dx takes the thin products too
        g_Tm = g.reshape(-1, g.shape[-1])
        du_all = _scaled(g_Tm @ (_beside(B_mR, B_mc, 1) if thin else B_mR), ctx.keep_scale)
        du_TR = du_all[:, : len(A_Rn)]
        dx = dA = dB = None
        if A_needed or (B_needed and u_TR is None):
            x_Tn = _kept(x, keep).reshape(-1, x.shape[-1])
            if A_needed:  # in A's own memory order, or the scatter's backward would have to copy it
                dA = du_TR.T @ x_Tn if A_Rn.is_contiguous() else (x_Tn.T @ du_TR).T
            u_TR = _scaled(x_Tn @ A_Rn.T, ctx.keep_scale) if u_TR is None else u_TR
        if B_needed:
            assert u_TR is not None
            dB = g_Tm.T @ u_TR
        if x_needed and ctx.once:
            dx = (g_Tm @ torch.addmm(W_mn, _beside(B_mR, B_mc, 1), _beside(A_Rn, A_cn, 0))).view_as(x)
        elif x_needed and W_mn is not None and keep is None:
            dx = (g_Tm @ W_mn).addmm_(du_all, _beside(A_Rn, A_cn, 0)).view_as(x)
        elif x_needed:
            dx = _kept((du_all @ _beside(A_Rn, A_cn, 0)).view_as(x), keep)
            if W_mn is not None:
                dx += (g_Tm @ W_mn).view_as(x)
        return g if y_needed else None, dx, dA, dB, *[None] * 7


def _little(x: Tensor, keep: Tensor | None, *thin: Tensor | None) -> bool:
    """Whether dropout's mask, a byte an input, and the thin tensors are less than the dropped-out x of PEFT's LoRA."""
    return keep is not None and sum(t.nbytes for t in thin if t is not None) <= x.nbytes - keep.nbytes


def _beside(live: Tensor, frozen: Tensor | None, dim: int) -> Tensor:
    return live if frozen is None else torch.cat([live, frozen.to(live)], dim=dim)


def _kept(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else x * keep


def _scaled(thin: Tensor, keep_scale: float) -> Tensor:
    return thin if keep_scale == 1 else thin.mul_(keep_scale)
