"""The gradient summed over training steps, raw or divided by Adam's second moment, from sketches alone.

Shape legend
    m, n   rows and columns of W          s   sketch width          t   optimizer steps since the last event
    G_t    (m, n) the gradient of step t, summed over its micro-batches; never formed
    Y_t = G_t Omega (m, s)                Z_t = Psi G_t (2s+1, n)

Adam divides every entry by the square root of its own second moment, which a sketch cannot hold. Factored as in
Adafactor (Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235) it is a vector of rows and one of columns:

    sum_t G_t,ij^2  ~  R_i C_j / sum_i R_i       R_i = sum_j sum_t G_t,ij^2       C_j = sum_i sum_t G_t,ij^2

Omega and Psi are Gaussian, so the squares in a row of Y_t add up to those of the row of G_t in expectation, and the
squares in a column of Z_t to those of the column, times a constant. Up to a constant, then,

    sum_t G_t / sqrt(second moment)  ~  diag(R)^-1/2 (left right) diag(C)^-1/2       with left right ~ sum_t G_t
"""

from __future__ import annotations

import torch
from torch import Tensor

from localora.placement.signals import GradientSketch, SharedInputs

NEGLIGIBLE = 1e-12  # second moments below this share of the largest are taken for that: their rows hold rounding only


class AccumulatedGradient:
    """Sketch of the gradient summed over steps; with `normalise`, also R `(m,)` and C `(n,)`. Tensors on `device`."""

    def __init__(
        self,
        m: int,
        n: int,
        width: int,
        seed: int,
        *,
        normalise: bool,
        device: torch.device | str = "cpu",
        inputs: SharedInputs | None = None,
    ) -> None:
        def empty() -> GradientSketch:
            return GradientSketch(m, n, width, seed, device=device, inputs=inputs)

        self.total = empty()
        # The squares of a sum are not the sum of squares: the step under way has a sketch of its own.
        self.step = empty() if normalise else self.total
        self.normalise = normalise
        self.row_squares = torch.zeros(m, dtype=torch.float64, device=device)
        self.col_squares = torch.zeros(n, dtype=torch.float64, device=device)

    @property
    def batches(self) -> int:
        """Backward passes seen, up to the last :meth:`end_step`."""
        return self.total.batches

    def observe(self, x_tn: Tensor, g_tm: Tensor) -> None:
        """Add one backward pass of the step under way. x `(T, n)`, g `(T, m)`."""
        self.step.observe(x_tn, g_tm)

    def end_step(self) -> None:
        """The optimizer has stepped: what was observed since the last time is one G_t."""
        if not self.normalise or not self.step.batches:
            return
        self.row_squares += self.step.Y.double().square().sum(1)
        self.col_squares += self.step.Z.double().square().sum(0)
        self.total.add(self.step)
        self.step.clear()

    def factors(self) -> tuple[Tensor, Tensor]:
        """left `(m, s)` and right `(s, n)` of the summed gradient, float64 on the CPU."""
        left, right = self.total.factors()
        if self.normalise:
            left = left * _inverse_root(self.row_squares)[:, None]
            right = right * _inverse_root(self.col_squares)
        return left, right

    def tensors(self) -> list[Tensor]:
        """What is summed over the processes of a distributed run; the squares are those of each one's own gradient."""
        return [*self.total.tensors(), *((self.row_squares, self.col_squares) if self.normalise else ())]

    def state_dict(self) -> dict[str, Tensor]:
        """All that a resumed run needs, if taken between steps."""
        state = {"batches": torch.tensor(self.batches), "Y": self.total.Y, "Z": self.total.Z}
        squares = {"row_squares": self.row_squares, "col_squares": self.col_squares} if self.normalise else {}
        return {**state, **squares}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a :meth:`state_dict` of the same shapes and settings."""
        device = self.row_squares.device
        self.total.batches = int(state["batches"])
        self.total.Y, self.total.Z = state["Y"].to(device), state["Z"].to(device)
        if self.normalise:
            self.row_squares, self.col_squares = state["row_squares"].to(device), state["col_squares"].to(device)


def _inverse_root(squares: Tensor) -> Tensor:
    squares = squares.cpu()
    largest = squares.max()
    return torch.ones_like(squares) if largest == 0 else squares.clamp_min(NEGLIGIBLE * largest).rsqrt()
