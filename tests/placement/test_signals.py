"""Signals equal what a real weight.grad gives, whole tensors in float64, also through hooks on real models.

The oracle lets the base weights require grad and reads W.grad after each backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from localora.placement.partition import Partition
from localora.placement.signals import ROW_BAND, GradientSketch, TaylorScores
from localora.tuner.observe import watch_gradients
from tiny_models import GPT2_TARGETS, LLAMA_TARGETS, tiny_gpt2, tiny_llama, token_batch

M, N, T, WIDTH = 30, 20, 50, 6


def pass_of(seed: int, m: int = M, n: int = N, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(x, g, G) of a linear layer, with G from autograd on a real weight; `rank` limits the rank of G."""
    generator = torch.Generator().manual_seed(seed)
    tokens = rank or T
    x = torch.randn(tokens, n, generator=generator, dtype=torch.float64)
    weight = torch.randn(m, n, generator=generator, dtype=torch.float64, requires_grad=True)
    y = x @ weight.T
    y.retain_grad()
    (torch.tanh(y) * torch.randn(tokens, m, generator=generator, dtype=torch.float64)).sum().backward()
    assert y.grad is not None
    assert weight.grad is not None
    return x, y.grad, weight.grad


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(M, N, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def test_taylor_scores_are_sums_of_each_batch_s_w_times_grad(weight: Tensor) -> None:
    scores = TaylorScores(M, N)
    importance = torch.zeros(M, N, dtype=torch.float64)
    for seed in range(3):
        x, g, G = pass_of(seed)
        scores.observe(x, g, weight)
        importance += (weight * G).abs()
    torch.testing.assert_close(scores.rows, importance.sum(1))
    torch.testing.assert_close(scores.cols, importance.sum(0))
    torch.testing.assert_close(scores.total, importance.sum())
    assert scores.batches == 3
    assert scores.inside_share == pytest.approx(1.0)


def test_taylor_scores_within_a_block(weight: Tensor) -> None:
    rows, cols = torch.tensor([3, 17, 4]), torch.tensor([0, 19])
    scores = TaylorScores(M, N, within=Partition.block(M, N, rows, cols))
    x, g, G = pass_of(0)
    scores.observe(x, g, weight)
    importance = (weight * G).abs()
    torch.testing.assert_close(scores.rows, importance[:, cols].sum(1))
    torch.testing.assert_close(scores.cols, importance[rows].sum(0))
    torch.testing.assert_close(scores.total, importance.sum())
    torch.testing.assert_close(scores.inside, importance[rows[:, None], cols].sum())
    assert scores.inside_share == pytest.approx(float(importance[rows[:, None], cols].sum() / importance.sum()))


def test_taylor_scores_over_more_than_one_band_of_rows() -> None:
    m = 2 * ROW_BAND + 3
    x, g, G = pass_of(0, m=m)
    weight = torch.randn(m, N, dtype=torch.float64)
    scores = TaylorScores(m, N)
    scores.observe(x, g, weight)
    torch.testing.assert_close(scores.rows, (weight * G).abs().sum(1))
    torch.testing.assert_close(scores.cols, (weight * G).abs().sum(0))


def test_no_importance_at_all_is_a_share_of_zero() -> None:
    scores = TaylorScores(2, 3)
    scores.observe(torch.zeros(4, 3), torch.zeros(4, 2), torch.ones(2, 3))
    assert scores.inside_share == 0.0


def test_sketch_is_the_projected_sum_of_gradients() -> None:
    sketch = GradientSketch(M, N, WIDTH, seed=5)
    total = torch.zeros(M, N, dtype=torch.float64)
    for seed in range(3):
        x, g, G = pass_of(seed)
        sketch.observe(x, g)
        total += G
    omega, psi = sketch._omega(), sketch._psi()
    assert omega.shape == (N, WIDTH)
    assert psi.shape == (2 * WIDTH + 1, M)
    torch.testing.assert_close(sketch.Y.double(), total @ omega)
    torch.testing.assert_close(sketch.Z.double(), psi @ total)


@pytest.mark.parametrize("rank", [1, WIDTH])
def test_sketch_factors_are_exact_up_to_its_width(rank: int) -> None:
    x, g, G = pass_of(0, rank=rank)
    sketch = GradientSketch(M, N, WIDTH, seed=0)
    sketch.observe(x, g)
    left, right = sketch.factors()
    assert (left.shape, right.shape) == ((M, WIDTH), (WIDTH, N))
    torch.testing.assert_close(left.T @ left, torch.eye(WIDTH, dtype=torch.float64))
    torch.testing.assert_close(left @ right, G, rtol=1e-9, atol=1e-11)


def test_sketch_of_a_full_rank_gradient_is_near_its_best_approximation() -> None:
    _, _, G = pass_of(0)
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    G = (U * 2.0 ** -torch.arange(N)) @ Vh  # decaying spectrum, as of a language model's gradient
    sketch = GradientSketch(M, N, WIDTH, seed=0)
    sketch.observe(G, torch.eye(M, dtype=torch.float64))
    left, right = sketch.factors()
    best = torch.linalg.svdvals(G)[WIDTH:].norm()
    assert (left @ right - G).norm() < 10 * best
    assert (left @ right - G).norm() >= best


def test_sketch_of_nothing_and_of_a_narrow_matrix() -> None:
    sketch = GradientSketch(4, 3, 64, seed=0)
    assert sketch.width == 3
    sketch.observe(torch.zeros(5, 3), torch.zeros(5, 4))
    left, right = sketch.factors()
    assert torch.equal(left @ right, torch.zeros(4, 3, dtype=torch.float64))


def test_sketch_depends_on_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (GradientSketch(M, N, WIDTH, seed=seed)._omega() for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


# Through hooks on a whole model.

MODELS = {"llama": (tiny_llama, LLAMA_TARGETS), "gpt2": (tiny_gpt2, GPT2_TARGETS)}
Prepare = Callable[[nn.Module], None]


def _as_it_is(model: nn.Module) -> None:
    pass


def _checkpointing(reentrant: bool) -> Prepare:
    def prepare(model: nn.Module) -> None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.disable_input_require_grads()  # transformers' own help for frozen models; watching must not need it
        model.train()

    return prepare


def _targets(model: nn.Module, names: list[str]) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in names}


def _weight_mn(layer: nn.Module) -> Tensor:
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def _observed(kind: str, batches: list[dict[str, Tensor]], prepare: Prepare, **autocast: object) -> dict[str, tuple]:
    make, names = MODELS[kind]
    model = make().double() if not autocast else make()
    model.requires_grad_(False)
    prepare(model)
    layers = _targets(model, names)
    scores = {name: TaylorScores(*_weight_mn(layer).shape) for name, layer in layers.items()}
    sketches = {name: GradientSketch(*_weight_mn(layer).shape, WIDTH, seed=1) for name, layer in layers.items()}

    def observer(name: str, layer: nn.Module) -> Callable[[Tensor, Tensor], None]:
        def observe(x: Tensor, g: Tensor) -> None:
            assert not torch.is_grad_enabled()
            scores[name].observe(x, g, _weight_mn(layer))
            sketches[name].observe(x, g)

        return observe

    with watch_gradients(model, {layer: observer(name, layer) for name, layer in layers.items()}):
        for batch in batches:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(autocast)):
                loss = model(**batch).loss
            loss.backward()
    assert all(not p.requires_grad and p.grad is None for p in model.parameters())
    assert all(not module._forward_hooks for module in model.modules())
    return {name: (scores[name], sketches[name]) for name in layers}


def _oracle(kind: str, batches: list[dict[str, Tensor]]) -> dict[str, list[tuple[Tensor, Tensor]]]:
    make, names = MODELS[kind]
    model = make().double()
    layers = _targets(model, names)
    passes: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    for batch in batches:
        model.zero_grad()
        model(**batch).loss.backward()
        for name, layer in layers.items():
            grad = layer.weight.grad.T if isinstance(layer, Conv1D) else layer.weight.grad
            passes[name].append((_weight_mn(layer).detach(), grad.clone()))
    return passes


def _compare(observed: dict[str, tuple], oracle: dict[str, list[tuple[Tensor, Tensor]]], **tolerance: float) -> None:
    assert observed.keys() == oracle.keys()
    for name, (scores, sketch) in observed.items():
        importance = sum((W * G).abs() for W, G in oracle[name])
        total = sum(G for _, G in oracle[name])
        assert scores.batches == sketch.batches == len(oracle[name])
        for ours, expected in (
            (scores.rows, importance.sum(1)),
            (scores.cols, importance.sum(0)),
            (scores.total, importance.sum()),
            (sketch.Y.double(), total @ sketch._omega()),
            (sketch.Z.double(), sketch._psi() @ total),
        ):
            if tolerance:
                assert (ours - expected).norm() <= tolerance["relative"] * expected.norm(), name
            else:
                torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "prepare",
    [_as_it_is, _checkpointing(reentrant=False), _checkpointing(reentrant=True)],
    ids=["plain", "checkpointing", "checkpointing-reentrant"],
)
def test_hooks_see_the_real_gradient(kind: str, prepare: Prepare) -> None:
    batches = [token_batch(0), token_batch(1, examples=2)]
    _compare(_observed(kind, batches, prepare), _oracle(kind, batches))


@pytest.mark.parametrize("kind", MODELS)
def test_bf16_autocast(kind: str) -> None:
    batches = [token_batch(0)]
    _compare(_observed(kind, batches, _as_it_is, bf16=True), _oracle(kind, batches), relative=0.05)


def _padded(batch: dict[str, Tensor], left: bool) -> dict[str, Tensor]:
    def pad(tensor: Tensor, value: int) -> Tensor:
        padding = tensor.new_full((tensor.shape[0], 5), value)
        return torch.cat([padding, tensor] if left else [tensor, padding], dim=1)

    padded = {"input_ids": pad(batch["input_ids"], 0), "attention_mask": pad(batch["attention_mask"], 0)}
    padded["labels"] = pad(batch["labels"], -100)
    if left:
        padded["position_ids"] = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return padded


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_padding_changes_nothing(left: bool) -> None:
    batch = token_batch(0)
    observed = _observed("llama", [_padded(batch, left)], _as_it_is)
    _compare(observed, _oracle("llama", [batch]))


def test_a_weight_used_twice_is_observed_twice() -> None:
    """Gradient accumulation within one backward pass: a shared layer contributes each use, and the sketch their sum."""
    layer = nn.Linear(N, N, bias=False).double()
    x = torch.randn(4, N, dtype=torch.float64)
    (grad,) = torch.autograd.grad(layer(torch.tanh(layer(x))).square().sum(), layer.weight)
    sketch = GradientSketch(N, N, WIDTH, seed=0)
    with watch_gradients(layer, {layer: sketch.observe}):
        layer(torch.tanh(layer(x))).square().sum().backward()
    torch.testing.assert_close(sketch.Y.double(), grad @ sketch._omega())


def test_flags_and_hooks_come_back_after_an_error(llama: nn.Module) -> None:
    flags = {name: i % 2 == 0 for i, (name, _) in enumerate(llama.named_parameters())}
    for name, parameter in llama.named_parameters():
        parameter.requires_grad_(flags[name])
    layer = llama.model.layers[0].self_attn.q_proj
    with pytest.raises(KeyError), watch_gradients(llama, {layer: lambda x, g: None}):
        llama.state_dict()["no such key"]
    assert {name: p.requires_grad for name, p in llama.named_parameters()} == flags
    assert not layer._forward_hooks
    assert not llama.get_input_embeddings()._forward_hooks


def test_in_place_operations_after_the_layer_are_allowed() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(inplace=True))
    seen: list[Tensor] = []
    with watch_gradients(model, {layer: lambda x, g: seen.append(g)}):
        model(torch.ones(2, 3)).sum().backward()
    assert seen[0].shape == (2, 3)
