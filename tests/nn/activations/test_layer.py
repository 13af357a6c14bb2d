"""What activation layers share: constructors, ranges collected from data, then learned, and grids that go on."""

import copy
import inspect
import warnings

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import BitwrightWarning, QuantizerError, QuantTensor, grid_of
from bitwright.quantizers import (
    Int8Act,
    Int8ActPerChannel,
    Int8ActPowerOfTwo,
    Int8WeightPerTensor,
    ShiftedUint8Act,
    Uint4Act,
    Uint8Act,
    Uint8ActPerChannel,
)

X = torch.tensor([-9.0, -1.5, -0.3, 0.0, 0.3, 1.1, 2.5, 9.0])


# Constructors


def test_the_signature_names_everything():
    assert list(inspect.signature(qnn.QuantHardTanh).parameters) == [
        *("min_val", "max_val", "inplace", "act_quant", "input_quant", "return_quant_tensor", "device", "dtype"),
        "overrides",
    ]
    assert inspect.signature(qnn.QuantReLU).parameters["act_quant"].default == Uint8Act


class OwnELU(qnn.ActivationLayer, nn.ELU):
    def __init__(self, alpha=1.0, inplace=False, *, act_quant=Int8Act, **options):
        super().__init__(alpha, inplace, act_quant=act_quant, **options)

    def _function(self, x):
        return F.elu(x, self.alpha, self.inplace)


class Gentle(OwnELU):
    def __init__(self, **options):
        super().__init__(0.5, **options)


def test_a_layer_of_ones_own_is_two_methods():
    layer = Gentle(bit_width=4, scale=0.25, input_quant=Int8Act, input_scale=0.5, return_quant_tensor=True)
    assert (layer.alpha, layer.inplace, layer.return_quant_tensor) == (0.5, False, True)
    assert layer(X).int().tolist() == [-2, -2, -1, 0, 2, 4, 7, 7]
    assert list(inspect.signature(Gentle).parameters) == [
        *("act_quant", "input_quant", "return_quant_tensor", "device", "dtype", "overrides"),
    ]
    with pytest.raises(QuantizerError, match=r"^OwnELU: inplace=4 is not possible: expected True or False\.$"):
        OwnELU(0.5, 4)


class OwnSoftsign(qnn.ActivationLayer, nn.Softsign):
    def __init__(self, *, act_quant=Int8Act, **options):
        super().__init__(act_quant=act_quant, **options)


def test_the_function_is_torchs_unless_the_layer_has_its_own():
    x = torch.tensor([-9.0, 0.0, 1.0])
    assert torch.equal(OwnSoftsign(act_quant=None)(x), F.softsign(x))
    assert OwnSoftsign(scale=0.125, return_quant_tensor=True)(x).int().tolist() == [-7, 0, 4]


@pytest.mark.parametrize("given", [{}, {"act_quant": None, "input_quant": Int8Act}])
def test_nested_tensors_are_refused(given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that they are a prototype
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(QuantizerError) as caught:
        qnn.QuantMish(**given)(nested)
    assert str(caught.value) == (
        "QuantMish: the input is a nested tensor, which can't be quantized. Pad it, x.to_padded_tensor(0.0); if "
        "nn.TransformerEncoder made it, write enable_nested_tensor=False there."
    )


FLAGS = "is not possible: expected True or False."
WRONG = {
    "four bits": (lambda: qnn.QuantReLU(4), f"QuantReLU: inplace=4 {FLAGS} Write QuantReLU(bit_width=4) for 4 bits."),
    "four of numpy's": (
        lambda: qnn.QuantSiLU(numpy.int64(4)),
        f"QuantSiLU: inplace={numpy.int64(4)!r} {FLAGS} Write QuantSiLU(bit_width=4) for 4 bits.",
    ),
    "a quantizer": (
        lambda: qnn.QuantReLU6(Uint4Act),
        f"QuantReLU6: inplace=Uint4Act {FLAGS} Write QuantReLU6(act_quant=Uint4Act).",
    ),
    "one": (lambda: qnn.QuantReLU(1), f"QuantReLU: inplace=1 {FLAGS}"),
    "none": (lambda: qnn.QuantHardSwish(None), f"QuantHardSwish: inplace=None {FLAGS}"),
    "a word": (lambda: qnn.QuantSiLU("yes"), f"QuantSiLU: inplace='yes' {FLAGS}"),
    "by keyword": (lambda: qnn.QuantHardTanh(inplace=0), f"QuantHardTanh: inplace=0 {FLAGS}"),
    "in second place": (lambda: qnn.QuantLeakyReLU(0.1, 4), f"QuantLeakyReLU: inplace=4 {FLAGS}"),
    "bits for a method": (
        lambda: qnn.QuantGELU(4),
        "QuantGELU: approximate=4 is not possible: expected 'none' or 'tanh'. Write QuantGELU(bit_width=4) for 4 bits.",
    ),
    "no method": (
        lambda: qnn.QuantGELU("sigmoid"),
        "QuantGELU: approximate='sigmoid' is not possible: expected 'none' or 'tanh'.",
    ),
    "no slope": (
        lambda: qnn.QuantLeakyReLU(True),
        "QuantLeakyReLU: negative_slope=True is not possible: expected a number.",
    ),
    "a slope that is a word": (
        lambda: qnn.QuantLeakyReLU("0.1"),
        "QuantLeakyReLU: negative_slope='0.1' is not possible: expected a number.",
    ),
    "no end": (
        lambda: qnn.QuantHardTanh(None, 1.0),
        "QuantHardTanh: min_val=None is not possible: expected a number.",
    ),
    "not a number": (
        lambda: qnn.QuantHardTanh(-1.0, float("nan")),
        "QuantHardTanh: max_val=nan is not possible: expected a number above min_val=-1.0.",
    ),
    "ends the wrong way round": (
        lambda: qnn.QuantHardTanh(1, -1),
        "QuantHardTanh: max_val=-1 is not possible: expected a number above min_val=1.",
    ),
    "no alpha": (
        lambda: qnn.QuantELU("1"),
        "QuantELU: alpha='1' is not possible: expected a number.",
    ),
    "bits for alpha": (
        lambda: qnn.QuantCELU(1.0, 8),
        f"QuantCELU: inplace=8 {FLAGS}",
    ),
    "no beta": (
        lambda: qnn.QuantSoftplus(None),
        "QuantSoftplus: beta=None is not possible: expected a number.",
    ),
    "no threshold": (
        lambda: qnn.QuantSoftplus(1.0, True),
        "QuantSoftplus: threshold=True is not possible: expected a number.",
    ),
    "no dimension": (
        lambda: qnn.QuantSoftmax(1.0),
        "QuantSoftmax: dim=1.0 is not possible: expected a dimension such as -1.",
    ),
    "a flag for a dimension": (
        lambda: qnn.QuantSoftmax(True),
        "QuantSoftmax: dim=True is not possible: expected a dimension such as -1.",
    ),
    "ours": (
        lambda: qnn.QuantIdentity(return_quant_tensor=1),
        f"QuantIdentity: return_quant_tensor=1 {FLAGS}",
    ),
    "ours, none": (
        lambda: qnn.QuantReLU(return_quant_tensor=None),
        f"QuantReLU: return_quant_tensor=None {FLAGS}",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_of_the_wrong_kind_are_refused(name):
    build, message = WRONG[name]
    with pytest.raises(QuantizerError) as caught:
        build()
    assert str(caught.value) == message


def test_numbers_and_flags_of_numpy_are_taken():
    relu = qnn.QuantReLU(numpy.True_, return_quant_tensor=numpy.bool_(False))
    assert relu.inplace is True
    assert relu.return_quant_tensor is False
    tanh = qnn.QuantHardTanh(numpy.float32(-0.5), numpy.int64(2))
    assert repr(tanh).splitlines()[1] == "  min_val=-0.5, max_val=2"
    assert type(tanh.min_val) is float
    assert qnn.QuantSoftmax(numpy.int64(-1)).dim == -1


# Bit widths, types, granularity


@pytest.mark.parametrize(("bit_width", "top"), [(2, 3), (4, 15), (8, 255)])
def test_bit_width(bit_width, top):
    out = qnn.QuantReLU(bit_width=bit_width, scale=0.01, return_quant_tensor=True)(X)
    assert out.int().max().item() == top
    assert out.bit_width == bit_width
    assert not out.signed


def test_overrides_need_no_prefix():
    layer = qnn.QuantReLU(act_quant=Uint4Act, bit_width=3, max_value=7.0, return_quant_tensor=True)
    out = layer(torch.tensor([0.4, 3.6, 9.0]))
    assert out.int().tolist() == [0, 4, 7]
    assert out.scale.item() == 1.0


def test_a_scale_per_channel_needs_no_shape():
    layer = qnn.QuantIdentity(act_quant=Int8ActPerChannel, calibration_steps=1, return_quant_tensor=True)
    x = torch.tensor([[[1.27, -0.2]], [[-0.5, 0.1]]]).reshape(1, 2, 1, 2) * torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)
    out = layer(x)
    assert out.scale.shape == (1, 2, 1, 1)
    torch.testing.assert_close(out.scale.reshape(-1), torch.tensor([1.27, 1.0]) / 128)
    assert out.int().tolist() == [[[[127, -20]], [[-128, 26]]]]
    assert grid_of(out).axis == 1


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_any_axis(axis):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5)
    layer = qnn.QuantIdentity(axis=axis, calibration_steps=1, statistic="abs_max", return_quant_tensor=True)
    out = layer(x)
    expected = x.abs().amax([dim for dim in range(3) if dim != axis % 3])
    torch.testing.assert_close(out.scale.reshape(-1), expected / 128)
    assert out.scale.ndim == 3
    assert out.is_valid


def test_an_input_with_other_channels_is_refused_with_the_path():
    model = nn.Sequential(nn.Identity(), qnn.QuantIdentity(act_quant=Int8ActPerChannel))
    model(torch.randn(2, 3, 4, 4))
    with pytest.raises(
        ValueError, match=r"^1\.act_quant\.scaling: the input has 5 entries along axis 1, but the 3 scales"
    ):
        model(torch.randn(2, 5, 4, 4))


# Ranges from data


def test_the_range_is_a_running_average_of_the_first_batches_then_learned():
    layer = qnn.QuantReLU(statistic="abs_max", calibration_steps=3, momentum=0.5)
    scaling = layer.act_quant.scaling
    for batch, expected in [(2.0, 2.0), (4.0, 3.0), (7.0, 5.0)]:
        assert scaling.calibrating
        layer(torch.tensor([batch, 1.0]))
        assert scaling.magnitude.item() == expected
    assert not scaling.calibrating
    layer(torch.tensor([100.0]))
    assert scaling.magnitude.item() == 5.0
    layer(torch.tensor([100.0])).sum().backward()
    assert scaling.magnitude_offset.grad.tolist() == [pytest.approx(1.0)]  # what is clipped asks for a larger range


def test_while_collecting_the_range_is_not_learned():
    layer = qnn.QuantReLU(calibration_steps=2)
    x = torch.tensor([1.0, 3.0], requires_grad=True)
    layer(x).sum().backward()
    assert layer.act_quant.scaling.magnitude_offset.grad is None
    assert x.grad.tolist() == [1.0, 1.0]


def test_evaluation_uses_the_range_collected_so_far_and_does_not_change_it():
    layer = qnn.QuantReLU(statistic="abs_max", calibration_steps=300)
    layer(torch.tensor([2.55]))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.eval()
    assert layer(torch.tensor([0.5, 9.0])).tolist() == pytest.approx([0.5, 2.55])
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_batches_that_are_not_finite_do_not_poison_the_range():
    layer = qnn.QuantReLU(statistic="abs_max", calibration_steps=300)
    layer(torch.tensor([2.0]))
    layer(torch.tensor([torch.nan, 1.0]))
    layer(torch.tensor([torch.inf]))
    assert layer.act_quant.scaling.magnitude.item() == 2.0


@pytest.mark.parametrize("quantizer", [Int8Act, Uint8Act, ShiftedUint8Act, Int8ActPowerOfTwo, Uint8ActPerChannel])
def test_evaluated_before_it_saw_data_it_uses_the_range_at_hand_and_warns_once(quantizer):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Identity(), qnn.QuantIdentity(act_quant=quantizer))

        def forward(self, x):
            return self.features(x)

    model = Net().eval()
    x = torch.rand(2, 3, 4) * 50
    with pytest.warns(BitwrightWarning) as caught:
        out = model(x)
    assert [str(each.message) for each in caught] == [
        "features.1.act_quant is evaluated before it saw any data: it uses the range of the tensor at hand "
        "and learns nothing from it. Calibrate the model, `with bitwright.graph.calibrate(model): model(batch)`, train "
        "it, or load a checkpoint."
    ]
    assert (out - x).abs().max() < 0.5  # far beyond 1.0, nothing is clipped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(x * 3).max() > 100


def test_no_data_no_harm():
    layer = qnn.QuantReLU()
    assert layer(torch.empty(0, 3)).shape == (0, 3)
    layer(torch.tensor([2.0]))
    assert layer.act_quant.scaling.magnitude.item() == 2.0


def test_an_all_zero_batch_gives_zeros():
    assert qnn.QuantReLU()(torch.zeros(4)).tolist() == [0.0] * 4
    assert qnn.QuantGELU()(torch.zeros(4)).tolist() == [0.0] * 4


# Composition


def test_a_copy_of_a_shared_running_average_goes_on():
    first = qnn.QuantIdentity(act_quant=Int8Act(scaling="running", statistic="abs_max"))
    model = nn.Sequential(first, qnn.QuantIdentity(act_quant=first.act_quant))
    model(torch.ones(2))
    copied = copy.deepcopy(model)
    for each in (model, copied):
        each(torch.full((2,), 9.0))
        assert each[0].act_quant.scaling.magnitude.item() == pytest.approx(1.8)


def test_a_shared_quantizer_makes_one_grid():
    first = qnn.QuantReLU(statistic="abs_max", return_quant_tensor=True, calibration_steps=300)
    second = qnn.QuantReLU(act_quant=first.act_quant, return_quant_tensor=True)
    assert second.act_quant is first.act_quant
    one, other = first(torch.tensor([1.0])), second(torch.tensor([3.0]))
    assert first.act_quant.scaling.steps.item() == 2
    for module in (first, second):
        module.eval()
    one, other = first(torch.tensor([1.0])), second(torch.tensor([3.0]))
    assert isinstance(one + other, QuantTensor)
    assert torch.equal((one + other).int(), one.int().short() + other.int())
    assert isinstance(torch.cat([one, other]), QuantTensor)
    assert len(list(nn.ModuleList([first, second]).parameters())) == 1


@pytest.mark.parametrize("training", [True, False])
def test_sums_of_differently_quantized_tensors_are_plain_in_training_and_evaluation(training):
    layers = [qnn.QuantReLU(return_quant_tensor=True).train(training) for _ in range(2)]
    for layer in layers:
        layer.train()(torch.rand(4))
        layer.train(training)
    one, other = (layer(torch.rand(4)) for layer in layers)
    assert type(one + other) is torch.Tensor
    assert type(torch.cat([one, other])) is torch.Tensor


def test_identity_passes_a_quant_tensor_on_without_a_quantizer():
    q = qnn.QuantIdentity(scale=0.5, return_quant_tensor=True)(X)
    assert qnn.QuantIdentity(act_quant=None)(q) is q
    assert isinstance(qnn.QuantReLU(act_quant=None)(q), QuantTensor)


def test_the_output_of_a_layer_feeds_the_next_ones_bias():
    model = nn.Sequential(
        qnn.QuantReLU(scale=0.5, return_quant_tensor=True), qnn.QuantLinear(8, 2, weight_quant=Int8WeightPerTensor)
    )
    assert model(X[None]).shape == (1, 2)
    assert grid_of(model[0](X)).scale.item() == 0.5
    assert model[1]._seen.scale.item() == 0.5


def test_repr():
    assert repr(qnn.QuantReLU(bit_width=4, return_quant_tensor=True)) == (
        "QuantReLU(\n"
        "  return_quant_tensor=True\n"
        "  (act_quant): IntQuant(\n"
        "    uint4, per tensor, float scale, half_even\n"
        "    (scaling): CalibratedScaling(AbsPercentile(99.999), per tensor, empty)\n"
        "  )\n"
        ")"
    )
