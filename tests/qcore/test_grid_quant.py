"""Quantizers to levels that are no integers."""

import copy
import pickle
import re

import pytest
import torch

from bitwright.qcore import (
    BINARY,
    E2M1,
    E4M3,
    NF4,
    AbsMax,
    CalibratedScaling,
    ConstantScaling,
    Grid,
    GridQuant,
    Integers,
    LearnedScaling,
    MinMax,
    MinSquaredError,
    MXScale,
    OddIntegers,
    PerGroup,
    QuantizerError,
    QuantTensor,
    ReadOnlyError,
    SettingError,
    StatisticScaling,
    StochasticRounding,
    describe,
    resolve,
    values_of,
)
from bitwright.quantizers import Fp8e4m3Act, Fp8e4m3WeightPerTensor, Int8Act, Int8WeightPerTensor, MXFloat4e2m1Weight

X = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))


def test_values_and_grid():
    quant = GridQuant(E2M1, StatisticScaling(E2M1))
    values, grid = quant.quantize(torch.tensor([0.3, -0.6, 1.2]))
    assert values.tolist() == pytest.approx([0.3, -0.6, 1.2])
    assert grid.scale.item() == pytest.approx(0.2)
    assert grid.to_int(values).tolist() == [3, 13, 7]
    assert grid.number_format == quant.number_format == E2M1
    assert not quant.clips
    assert not quant.folds_relu


@pytest.mark.parametrize(
    ("scaling", "clips"),
    [
        (StatisticScaling(E2M1), False),
        (StatisticScaling(E2M1, restriction=MXScale("rceil")), False),
        (StatisticScaling(E2M1, restriction=MXScale("floor")), True),
        (LearnedScaling(E2M1), True),
        (CalibratedScaling(E2M1), True),
        (ConstantScaling(E2M1, scale=0.5), True),
        (StatisticScaling(E2M1, statistic=MinMax()), True),
    ],
    ids=repr,
)
def test_who_promises_that_nothing_is_clipped(scaling, clips):
    assert GridQuant(E2M1, scaling).clips == clips
    assert GridQuant(E2M1, scaling, rounding=StochasticRounding()).clips
    assert not GridQuant(E2M1, scaling, pass_clipped=True).clips


def test_asymmetric_levels_are_clipped():
    assert GridQuant(Integers(4), StatisticScaling(Integers(4))).clips
    assert not GridQuant(Integers(4, narrow_range=True), StatisticScaling(Integers(4, narrow_range=True))).clips


@pytest.mark.parametrize("form", [E4M3, E2M1, NF4, BINARY, OddIntegers(2)], ids=str)
def test_learned_scales_learn(form):
    """A scale that starts far too small grows until it fits."""
    quant = GridQuant(form, LearnedScaling(form, max_value=0.1))
    x = X.clamp(-2, 2)
    optimizer = torch.optim.Adam(quant.parameters(), 0.05)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        loss = (quant(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert quant.scale().item() > 0


def test_calibration():
    quant = resolve(Fp8e4m3Act(calibration_steps=1, statistic="abs_max"))
    assert not quant.calibrated
    quant(X)
    assert quant.calibrated
    quant.eval()
    values, grid = quant.quantize(X)
    assert grid.scale.item() == pytest.approx(X.abs().max().item() / 448)
    assert grid.source == quant.source
    loaded = resolve(Fp8e4m3Act)
    loaded.load_state_dict(quant.state_dict())
    assert torch.equal(loaded.eval()(X), values)


def test_scheme_says_the_format():
    assert resolve(Fp8e4m3WeightPerTensor).scheme() == "e4m3fn, per tensor, float scale"
    quant = resolve(MXFloat4e2m1Weight, {"channel_axis": 0})
    assert quant.scheme() == "e2m1fn, groups of 32 along axis 1, MX (floor) scale"
    other = resolve(Fp8e4m3WeightPerTensor)
    message = f"the file holds {other.scheme()}, the model is {quant.scheme()}."
    with pytest.raises(RuntimeError, match=re.escape(message)):
        quant.load_state_dict(other.state_dict())


def test_copies():
    quant = resolve(MXFloat4e2m1Weight, {"channel_axis": 0})
    for other in (copy.deepcopy(quant), pickle.loads(pickle.dumps(quant))):
        assert torch.equal(other(X), quant(X))
        assert other.number_format == E2M1


def test_codes():
    quant = resolve(Fp8e4m3WeightPerTensor)
    codes, grid = quant.codes(X)
    assert codes.dtype == torch.uint8
    assert torch.equal(grid.from_int(codes), quant(X))


def test_search_for_the_least_error():
    statistic = MinSquaredError(E2M1)
    rows = torch.cat([X.reshape(1, -1), torch.tensor([[30.0]])], 1)
    best = statistic(rows)
    searched, full = (
        (GridQuant(E2M1, StatisticScaling(E2M1, each))(rows) - rows).square().sum() for each in (statistic, AbsMax())
    )
    assert searched <= full
    assert 0 < best.item() <= 30


def test_number_format_is_settled():
    quant = resolve(Fp8e4m3WeightPerTensor)
    with pytest.raises(ReadOnlyError) as error:
        quant.number_format = E2M1
    assert str(error.value).startswith("GridQuant: number_format=Minifloat(")
    assert "can't be set on a quantizer that is built" in str(error.value)


def test_refusals():
    with pytest.raises(SettingError) as error:
        GridQuant("e4m3", StatisticScaling(E4M3))
    assert str(error.value) == (
        "number_format='e4m3' is not possible: expected a number format such as E4M3 or Integers(8)."
    )
    with pytest.raises(SettingError) as error:
        GridQuant(E4M3, StatisticScaling(E4M3), zero_point=max)
    assert str(error.value) == (
        "zero_point=<built-in function max> is not possible: expected None: zero points are integers', and e4m3fn has "
        "other levels. Write zero_point=None."
    )
    for levels in (E4M3, "e4m3"):
        with pytest.raises(SettingError) as error:
            resolve(Int8WeightPerTensor(number_format=levels))
        assert str(error.value).endswith(
            "is not possible: expected no other levels than the integers of bit_width, signed and narrow_range. Derive "
            "from a quantizer such as Fp8e4m3Act."
        )


def test_number_format_of_integers():
    assert resolve(Int8Act).number_format == Integers(8)
    assert resolve(Int8WeightPerTensor(bit_width=4)).number_format == Integers(4, narrow_range=True)
    assert GridQuant(Integers(4), StatisticScaling(Integers(4)))(X).unique().numel() <= 16


def test_description():
    found = describe(Fp8e4m3WeightPerTensor).find("number_format")
    assert [(each.attribute, each.value) for each in found.needs][:2] == [
        ("exponent_bits", "4"),
        ("mantissa_bits", "3"),
    ]


# Grids


def on_grid(form, x=X, source=None):
    values, grid = GridQuant(form, StatisticScaling(form)).quantize(x)
    return QuantTensor.wrap(values, grid.replace(source=source))


def test_quant_tensor():
    q = on_grid(E4M3)
    assert q.is_valid
    assert (q.bit_width, q.signed, q.int().dtype) == (8, True, torch.uint8)
    assert torch.equal(q.grid.from_int(q.int()), q.value)
    assert "e4m3fn" in repr(q)
    loaded = pickle.loads(pickle.dumps(q))
    assert loaded.grid.number_format == E4M3
    off = QuantTensor.wrap(q.value * 1.01, q.grid)
    assert not off.is_valid
    message = "Not every value lies on the grid of scale"
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        off.int()
    assert str(error.value).endswith(
        "and e4m3fn, so there are no codes to return. Quantize the tensor again, for example with QuantIdentity."
    )


def test_only_integers_have_bounds():
    grid = Grid(torch.tensor(0.5), number_format=E4M3)
    assert (grid.bit_width, grid.signed) == (8, True)
    message = (
        "The levels of this grid are e4m3fn, and integers are needed: only they have bounds, a narrow range and zero "
        "points. Ask its number_format, which has low and high, levels, encode and decode."
    )
    for name in ("bounds", "narrow_range"):
        with pytest.raises(QuantizerError, match=re.escape(message)):
            getattr(grid, name)


@pytest.mark.parametrize(
    "operation",
    [
        torch.relu,
        lambda x: torch.nn.functional.pad(x, (1, 1)),
        lambda x: torch.nn.functional.dropout(x, 0.5),
        lambda x: x.clone().relu_(),
        lambda x: x.clone().zero_(),
    ],
)
def test_operations_that_write_zero(operation):
    torch.manual_seed(0)
    kept, left = operation(on_grid(E4M3)), operation(on_grid(BINARY))
    assert kept.grid is not None
    assert kept.is_valid
    assert getattr(left, "grid", None) is None
    assert bool((values_of(kept) == 0).any())


def test_other_operations_keep_the_grid():
    for operation in (torch.t, torch.flatten, torch.clone, lambda x: x[:2], lambda x: x.reshape(2, 128)):
        assert operation(on_grid(BINARY)).is_valid


def test_sums_leave_the_grid():
    """Two levels of a float add up to what may be none."""
    assert not isinstance(on_grid(E4M3, source=1) + on_grid(E4M3, source=1), QuantTensor)
    assert isinstance(torch.cat([on_grid(E4M3, source=1), on_grid(E4M3, source=1)]), QuantTensor)
    assert not isinstance(torch.cat([on_grid(E4M3, source=1), on_grid(E2M1, source=1)]), QuantTensor)


def test_groups_move_with_the_values():
    quant = GridQuant(E2M1, StatisticScaling(E2M1, granularity=PerGroup(16)), granularity=PerGroup(16))
    q = QuantTensor.wrap(*quant.quantize(X))
    assert q.t().is_valid
    assert q.t().grid.granularity == PerGroup(16, 0)
