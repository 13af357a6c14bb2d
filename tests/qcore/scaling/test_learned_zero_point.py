"""Zero points that are parameters."""

import copy
import pickle
import re

import pytest
import torch

import bitwright.nn as qnn
from bitwright.graph import calibrate
from bitwright.qcore import LearnedZeroPoint, QuantTensor, SettingError
from bitwright.quantizers import (
    Int8Act,
    ShiftedUint4WeightPerChannel,
    ShiftedUint4WeightPerGroup,
    ShiftedUint4WeightPerTensor,
    ShiftedUint8Act,
    ShiftedUint8ActPerChannel,
)

X = torch.tensor([-1.0, 1.55])  # scale 0.01, zero point 100


def act(steps=1, kind=ShiftedUint8Act):
    return qnn.QuantIdentity(act_quant=kind, zero_point="learned", calibration_steps=steps)


def of(layer):
    return layer.act_quant.zero_point


def test_state_is_fixed():
    keys = ["magnitude_offset", "magnitude_base", "low_base", "measured", "steps"]
    expected = [f"act_quant.scaling.{key}" for key in keys]
    expected += [f"act_quant.zero_point.{key}" for key in ("offset", "base", "fixed")]
    layer = act()
    assert list(layer.state_dict())[1:] == expected
    layer(X)
    assert list(layer.state_dict())[1:] == expected


def test_follows_the_range_until_it_is_learned():
    layer = act(steps=2)
    layer(X)
    assert (of(layer).base.tolist(), of(layer).fixed.tolist()) == ([100], [0])
    layer(X * 2 + 1)  # from -1 to 4.1: the average from -1 to 1.805
    scale = layer.act_quant.grid(X).scale.item()
    assert of(layer).fixed.tolist() == [1]
    assert of(layer).base.tolist() == [round(1 / scale)]
    layer(X * 9)
    assert of(layer).base.tolist() == [round(1 / scale)]


def test_gradient():
    """Minus the scale for each clipped value: two of them, one with an upstream gradient of 5."""
    layer = act()
    layer(X)
    x = torch.tensor([0.3, 9.0, -9.0, 0.1])
    layer(x).backward(torch.tensor([1.0, 1.0, 5.0, 2.0]))
    assert of(layer).offset.grad.tolist() == pytest.approx([-0.01 * 6])


def test_gradient_of_the_definition():
    layer = act()
    layer(X)
    x, upstream = torch.randn(50), torch.randn(50)
    layer(x).backward(upstream)
    zero_point, scale = torch.tensor(100.0, requires_grad=True), 0.01
    codes = (x / scale).round() + zero_point
    clipped = torch.where(codes > 255, 255.0, torch.where(codes < 0, 0.0, codes))
    ((clipped - zero_point) * scale).backward(upstream)
    assert of(layer).offset.grad.item() == pytest.approx(zero_point.grad.item(), rel=1e-4)


def test_it_is_rounded_and_stays_in_range():
    layer = act()
    layer(X)
    for offset, expected in ((-3.3, 97), (900.0, 255), (-900.0, 0)):
        with torch.no_grad():
            of(layer).offset.fill_(offset)
        assert layer.act_quant.grid(X).zero_point.item() == expected
    y = layer(torch.tensor([-1.0, 5.0]))
    y.sum().backward()
    assert of(layer).offset.grad.item() != 0  # beyond the ends it finds back


def test_training_lowers_the_error():
    layer = act()
    layer(X)
    with torch.no_grad():
        of(layer).offset.fill_(60.0)
    x = torch.linspace(-0.9, 1.5, 200)
    optimizer = torch.optim.SGD([of(layer).offset], lr=3000.0)
    losses = []
    for _ in range(100):
        loss = (layer(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 100


@pytest.mark.parametrize(
    ("quantizer", "count"),
    [(ShiftedUint4WeightPerTensor, 1), (ShiftedUint4WeightPerChannel, 3), (ShiftedUint4WeightPerGroup, 6)],
    ids=repr,
)
def test_weights(quantizer, count):
    torch.manual_seed(0)
    layer = qnn.QuantLinear(64, 3, weight_quant=quantizer(zero_point="learned", scaling="learned"))
    plain = qnn.QuantLinear(64, 3, weight_quant=quantizer(scaling="learned"))
    plain.load_state_dict(layer.state_dict(), strict=False)
    layer(torch.randn(2, 64))
    zero_point = layer.weight_quant.zero_point
    assert zero_point.offset.shape == (count,)
    assert zero_point.current().tolist() == plain.quant_weight().zero_point.reshape(-1).tolist()
    weight = layer.quant_weight()
    assert isinstance(weight, QuantTensor)
    assert weight.is_valid


def test_channels_are_counted_by_the_first_input():
    layer = act(kind=ShiftedUint8ActPerChannel)
    layer(torch.randn(4, 3, 5))
    layer(torch.randn(4, 3, 5)).sum().backward()
    assert of(layer).base.shape == of(layer).offset.grad.shape == (3,)


def test_measured_anew():
    layer = act()
    layer(X)
    with torch.no_grad():
        of(layer).offset.fill_(7.0)
    layer.act_quant.scaling.start_calibration()
    assert (of(layer).fixed.tolist(), of(layer).offset.tolist()) == ([0], [0])
    layer(X + 1)
    assert of(layer).current().tolist() == [0]


def test_calibrate_sets_it():
    layer = act(steps=300)
    with calibrate(layer):
        layer(X)
    assert layer.act_quant.grid(X).zero_point.item() == 100
    layer.train()
    layer(X)
    assert (of(layer).fixed.tolist(), of(layer).base.tolist()) == ([1], [100])


def test_copies_and_files():
    layer = act()
    layer(X)
    with torch.no_grad():
        of(layer).offset.fill_(-20.0)
    loaded = act()
    loaded.load_state_dict(layer.state_dict())
    for each in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert of(each).scaling is each.act_quant.scaling
        assert each.eval().act_quant.grid(X).zero_point.item() == 80
        assert torch.equal(each(X * 2), layer.eval()(X * 2))
    assert repr(of(layer)) == "LearnedZeroPoint()"


def test_buffers_stay_wide():
    layer = act()
    layer(X)
    layer.half()
    assert of(layer).base.dtype == torch.float32
    meta = act().to("meta").to_empty(device="cpu")
    assert of(meta).fixed.tolist() == [0]


@pytest.mark.slow
def test_compiled():
    layer = act(steps=2)
    other = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for seed in range(4):
        x = torch.randn(100, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(compiled(x), other(x))
    assert of(layer).base.tolist() == of(other).base.tolist()


def test_needs_a_stored_range():
    expected = (
        "QuantLinear(in_features=4, out_features=2, bias=True): weight_zero_point='learned' is not possible: expected "
        "another zero point: StatisticScaling stores no range that this one could start from. Write "
        "weight_scaling='learned', or weight_zero_point='range'."
    )
    with pytest.raises(SettingError, match=f"^{re.escape(expected)}$"):
        qnn.QuantLinear(4, 2, weight_quant=ShiftedUint4WeightPerChannel, weight_zero_point="learned")


def test_needs_a_lower_end():
    expected = (
        "QuantIdentity(): in Int8Act, statistic=AbsPercentile(99.999) is not possible: expected a statistic with a "
        "lower end (`low`), for the zero point. Write statistic='min_max' or statistic='percentile_interval', or "
        "zero_point=None."
    )
    with pytest.raises(SettingError, match=f"^{re.escape(expected)}$"):
        qnn.QuantIdentity(act_quant=Int8Act(zero_point="learned"))
    assert issubclass(LearnedZeroPoint, torch.nn.Module)
