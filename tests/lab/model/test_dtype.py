"""The dtype that `auto` chooses, on processors and cards that this machine may not have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from localora.lab.model import dtype as module
from localora.lab.model.dtype import ChosenDtype, choose_dtype, times_float32

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        (0.25, ChosenDtype("bfloat16", "cpu multiplies it faster than float32")),
        (1.0, ChosenDtype("float32", "a product in bfloat16 takes 1.0 times float32's here")),
        (6.38, ChosenDtype("float32", "a product in bfloat16 takes 6.4 times float32's here")),
    ],
)
def test_auto_takes_what_the_processor_multiplies_faster(
    monkeypatch: pytest.MonkeyPatch, times: float, chosen: ChosenDtype
) -> None:
    monkeypatch.setattr(module, "times_float32", {"bfloat16": times}.__getitem__)
    assert choose_dtype("auto", CPU) == chosen


def test_a_dtype_asked_for_is_taken_and_its_price_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "times_float32", {"bfloat16": 6.38, "float16": 0.5}.__getitem__)
    slow = choose_dtype("bfloat16", CPU)
    assert slow == ChosenDtype(
        name="bfloat16", reason="asked for, but a product in bfloat16 takes 6.4 times float32's here"
    )
    assert slow.torch is torch.bfloat16
    assert choose_dtype("float16", CPU) == ChosenDtype("float16", "asked for")
    assert choose_dtype("float32", CPU) == ChosenDtype("float32", "asked for")


@pytest.mark.parametrize(("units", "name"), [(True, "bfloat16"), (False, "float32")])
def test_a_card_is_asked_for_its_units(monkeypatch: pytest.MonkeyPatch, units: bool, name: str) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return units or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old Card")
    monkeypatch.setattr(module, "times_float32", lambda dtype: pytest.fail("measured the processor"))
    chosen = choose_dtype("auto", torch.device("cuda", 0))
    assert chosen.name == name
    assert units or chosen.reason == "Old Card emulates bfloat16"
    assert choose_dtype("float16", torch.device("cuda", 0)) == ChosenDtype("float16", "asked for")


def test_the_measurement_is_of_products_in_each_dtype_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a made-up processor of 2 ms in float32 and 30 ms in bfloat16, of which the first call takes a second."""
    now, calls = [0.0], {torch.float32: 0, torch.bfloat16: 0}
    linear = torch.nn.functional.linear

    def timed(x: Tensor, W: Tensor) -> Tensor:
        first = calls[x.dtype] == 0
        calls[x.dtype] += 1
        now[0] += 1.0 if first else {torch.float32: 0.002, torch.bfloat16: 0.03}[x.dtype]
        return linear(x, W)

    monkeypatch.setattr(torch.nn.functional, "linear", timed)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert times_float32.__wrapped__("bfloat16") == pytest.approx(15)
    assert calls == {torch.float32: 6, torch.bfloat16: 3}  # stopped after 60 ms, of which 30 would do


def test_this_machine_is_measured_once() -> None:
    assert times_float32("bfloat16") == times_float32("bfloat16") > 0
