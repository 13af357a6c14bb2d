import copy
import re
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.graph.errors import GraphError
from bitwright.graph.porting import CheckpointError, load_brevitas
from bitwright.qcore import LearnedBitWidth, QuantizerError
from bitwright.quantizers import (
    Int8ActPerChannel,
    Int8ActPowerOfTwo,
    Int8WeightPerChannel,
    Int8WeightPerChannelLearned,
    Int8WeightPerTensorLearned,
    Int32Bias,
    ShiftedUint8Act,
    ShiftedUint8WeightPerTensor,
)
from tests.graph.porting.models.signs import BinaryAct

RANGE, RUNNING = "scaling_impl.value", "scaling_impl.runtime_stats.running_stats"
ZERO, BITS = "zero_point_impl.value", "msb_clamp_bit_width_impl.bit_width_offset"
GAIN = "scaling_impl.stats_scaling_impl.affine_rescaling.affine_weight"
SHIFT = "scaling_impl.stats_scaling_impl.affine_rescaling.affine_bias"


def act(number: object, ending: str = RANGE, place: str = "act") -> dict[str, Tensor]:
    """A number of an activation's quantizer as Brevitas saves it."""
    return {f"{place}.act_quant.fused_activation_quant_proxy.tensor_quant.{ending}": torch.tensor(number)}


def weight(number: object, ending: str = RANGE) -> dict[str, Tensor]:
    """A number of a weight's quantizer."""
    return {f"fc.weight_quant.tensor_quant.{ending}": torch.tensor(number)}


def model_of(**layers: nn.Module) -> nn.Sequential:
    """Layers with names."""
    return nn.Sequential(OrderedDict(layers))


def linear(**options: object) -> nn.Sequential:
    """A linear layer without a bias, whose weight is all zeros."""
    fc = qnn.QuantLinear(2, 2, bias=False, **options)
    nn.init.zeros_(fc.weight)
    return model_of(fc=fc)


WEIGHT = {"fc.weight": torch.tensor([[1.0, -2.0], [0.5, 0.25]])}


def refused(model: nn.Module, file: object) -> tuple[str, ...]:
    """What doesn't fit; nothing of the model has changed."""
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_brevitas(model, file)
    after = model.state_dict()
    assert [*before] == [*after]
    assert all(torch.equal(before[name], after[name]) for name in before)
    return caught.value.problems


# What is loaded


def test_report_says_what_went_where():
    model = model_of(
        act=qnn.QuantIdentity(return_quant_tensor=True),
        shifted=qnn.QuantIdentity(act_quant=ShiftedUint8Act, return_quant_tensor=True),
        fc=qnn.QuantLinear(2, 2, weight_bit_width=LearnedBitWidth, weight_scaling="learned", bias_quant=Int32Bias),
        constant=qnn.QuantReLU(max_value=1.0),
        relu=qnn.QuantReLU(axis=1),
    )
    file = act(5.08) | act(3.0, place="shifted") | act(-1.0, ZERO, "shifted") | act([[1.0, 3.0]], place="relu")
    report = load_brevitas(model, file | WEIGHT | weight(2.5) | weight(3.5, BITS) | {"fc.bias": torch.ones(2)})
    assert str(report) == (
        "load_brevitas: 4 changed, 2 left (tensors 2)\n"
        "  act.act_quant       range 5.08\n"
        "  shifted.act_quant   range 3, down to -1\n"
        "  fc.weight_quant     bit width 5.5, range 2.5\n"
        "  relu.act_quant      2 ranges from 1 to 3\n"
        "  fc.bias_quant       left: its scale is that of the products\n"
        "  constant.act_quant  left: its scale is constant"
    )


@pytest.mark.parametrize(
    ("options", "file", "scale"),
    [
        ({}, act(5.12), 0.04),
        ({"bit_width": 4}, act(5.12), 0.64),
        ({"restriction": "log"}, act(3.0), 8 / 128),
        ({"act_quant": Int8ActPowerOfTwo}, act(2.25), 8 / 128),
        ({"act_quant": Int8ActPowerOfTwo, "power_of_two_rounding": "round"}, act(2.25), 4 / 128),
        ({"act_quant": Int8ActPowerOfTwo, "power_of_two_rounding": "floor"}, act(2.75), 4 / 128),
        ({"act_quant": Int8ActPowerOfTwo}, act(2.0), 4 / 128),
        ({"act_quant": Int8ActPowerOfTwo}, act(2.0000002384185791), 8 / 128),  # 2 ** that rounds to 4
        ({"scaling": "running"}, act(5.12, RUNNING), 0.04),
        ({"scaling": "running", "restriction": "log"}, act(8.0, RUNNING), 8 / 128),
        ({"scaling": "running"}, act(5.12), 0.04),
        ({}, act(5.12, RUNNING), 0.04),
        ({}, act(2.56, RUNNING) | act(2.0, GAIN), 0.04),
        ({}, act(2.56, RUNNING) | act(2.0, GAIN) | act(5.12, SHIFT), 0.08),
        ({"scaling": "learned"}, act(5.12), 0.04),
        ({"scaling": "learned", "max_value": 1.0}, act(5.12), 0.04),
        ({}, act(5.12, "scaling_impl.learned_value"), 0.04),
        ({"bit_width": LearnedBitWidth}, act(5.12) | act(-2.4, BITS), 0.64),
        ({"bit_width": LearnedBitWidth}, act(5.12) | act(4.0, "msb_clamp_bit_width_impl.bit_width"), 0.64),
        ({"bit_width": 4}, act(5.12) | act(4.0, "msb_clamp_bit_width_impl.bit_width"), 0.64),
        ({"act_quant": Int8ActPerChannel}, act([[5.12, 2.56]]), [0.04, 0.02]),
        ({"act_quant": Int8ActPerChannel, "scaling": "learned", "max_value": 1.0}, act([5.12, 2.56]), [0.04, 0.02]),
    ],
)
def test_scale_of_activations(options, file, scale):
    model = model_of(act=qnn.QuantIdentity(**options))
    load_brevitas(model, file)
    torch.testing.assert_close(model.eval().act.act_quant.scale(), torch.tensor(scale))
    assert not model.train().act.act_quant.calibrating


@pytest.mark.parametrize(
    ("options", "file", "scale"),
    [
        ({}, {}, 2 / 127),
        ({"weight_quant": Int8WeightPerChannel}, {}, [2 / 127, 0.5 / 127]),
        ({"weight_scaling": "learned"}, weight(1.27), 0.01),
        ({"weight_quant": Int8WeightPerTensorLearned}, weight(1.27), 0.01),
        ({"weight_quant": Int8WeightPerChannelLearned}, weight([[1.27], [2.54]]), [0.01, 0.02]),
        ({"weight_scaling": "learned"}, weight(0.5, GAIN), 1 / 127),
        ({"weight_scaling": "learned"}, weight(0.5, GAIN) | weight(0.27, SHIFT), 0.01),
        ({"weight_scaling": "learned"}, weight(0.5, GAIN) | weight(1.27), 0.01),  # it was in use once, to start from
        ({"weight_quant": Int8WeightPerChannelLearned}, weight([[0.5], [2.0]], GAIN), [1 / 127, 1 / 127]),
        ({"weight_bit_width": LearnedBitWidth}, weight(2.0, BITS), 2 / 7),
    ],
)
def test_scale_of_weights(options, file, scale):
    model = linear(**options)
    load_brevitas(model, WEIGHT | file)
    torch.testing.assert_close(model.fc.quant_weight().scale.reshape(-1), torch.tensor(scale).reshape(-1))
    assert torch.equal(model.fc.weight, WEIGHT["fc.weight"])


def test_zero_points():
    model = model_of(act=qnn.QuantIdentity(act_quant=ShiftedUint8Act, return_quant_tensor=True))
    load_brevitas(model, act(2.55) | act(-1.0, ZERO))
    out = model.eval()(torch.tensor([-1.0, 0.0, 1.55]))
    assert out.int().tolist() == [0, 100, 255]
    model = linear(weight_quant=ShiftedUint8WeightPerTensor, weight_scaling="learned")
    load_brevitas(model, WEIGHT | weight(2.55) | weight(-2.0, ZERO))
    assert model.fc.int_weight().tolist() == [[255, 0], [250, 225]]


def test_zero_point_that_the_file_has_and_the_scaling_only_measures():
    model = model_of(act=qnn.QuantIdentity(act_quant=ShiftedUint8Act, zero_point=None))
    load_brevitas(model, act(2.55))
    torch.testing.assert_close(model.eval().act.act_quant.scale(), torch.tensor(0.01))


def test_tensors_stay_the_same_objects():
    model = model_of(act=qnn.QuantIdentity(), fc=qnn.QuantLinear(2, 2, bias=False))
    before = [*model.parameters(), *model.buffers()]
    load_brevitas(model, act(5.12) | WEIGHT)
    after = [*model.parameters(), *model.buffers()]
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_training_goes_on_from_what_was_learned():
    model = model_of(act=qnn.QuantIdentity())
    load_brevitas(model, act(1.28))
    model.train()(torch.full((4,), 9.0)).sum().backward()
    scaling = model.act.act_quant.scaling
    assert scaling.magnitude.item() == pytest.approx(1.28)
    assert scaling.magnitude_offset.grad is not None
    assert scaling.magnitude_offset.grad.item() == pytest.approx(4 * 127 / 128)


def test_shared_quantizers():
    shared = qnn.QuantReLU()
    model = model_of(act=shared, second=shared)
    load_brevitas(model, act(2.55) | act(2.55, place="second"))
    assert model.eval().second.act_quant.scale().item() == pytest.approx(0.01)
    assert refused(model, act(2.55) | act(5.1, place="second")) == (
        "second.act_quant.scaling.magnitude_base: in the model it is the same tensor as "
        "act.act_quant.scaling.magnitude_base, and the file has two that differ.",
    )


def test_shared_quantizer_that_the_file_has_at_one_place():
    first = qnn.QuantReLU()
    model = model_of(act=first, second=qnn.QuantUpsample(scale_factor=2, act_quant=first.act_quant))
    assert str(load_brevitas(model, act(2.55))).splitlines()[1:] == [
        "  act.act_quant     range 2.55",
        "  second.act_quant  range 2.55",
    ]


def test_batch_norms_of_their_own_and_merged_ones():
    own = model_of(fc=qnn.QuantLinear(2, 2, bias=False), bn=nn.BatchNorm1d(2))
    merged = model_of(fc=qnn.QuantLinear(2, 2))
    bn = {"bn.weight": torch.ones(2), "bn.bias": torch.zeros(2)}
    bn |= {"bn.running_mean": torch.ones(2), "bn.running_var": torch.full((2,), 4.0)}
    load_brevitas(own, WEIGHT | bn)  # without num_batches_tracked, as early files are
    assert own.bn.running_var.tolist() == [4.0, 4.0]
    load_brevitas(merged, WEIGHT | {"fc.bias": torch.ones(2)})
    assert merged.fc.bias.tolist() == [1.0, 1.0]
    assert refused(merged, WEIGHT | bn) == (
        "fc: the file has nothing for bias. Write bias=False.",
        "bn: the file has weight, bias, running_mean and running_var, and the model has no such module. Put the batch "
        "norm there, as in the file.",
    )
    assert refused(own, WEIGHT | {"fc.bias": torch.ones(2)}) == (
        "bn: the file has nothing for weight, bias, running_mean and running_var. If it is merged into the layer "
        "before it, leave it out here and write bias=True there.",
        "fc: the file has bias, and QuantLinear has nothing of that name. Write bias=True.",
    )


def test_batch_norms_that_become_factors_and_offsets():
    model = model_of(bn=qnn.QuantScaleBias(2, eps=0.0))
    bn = {"bn.weight": torch.tensor([1.0, 2.0]), "bn.bias": torch.zeros(2)}
    bn |= {"bn.running_mean": torch.ones(2), "bn.running_var": torch.full((2,), 4.0)}
    load_brevitas(model, bn | {"bn.num_batches_tracked": torch.tensor(3)})
    assert model.bn.weight.tolist() == [0.5, 1.0]
    assert model.bn.bias.tolist() == [-0.5, -1.0]


@pytest.mark.parametrize("form", ["halves", "parametrization", "plain"])
def test_weight_norm(form):
    model = linear()
    if form == "halves":
        with pytest.warns(FutureWarning, match="weight_norm"):
            nn.utils.weight_norm(model.fc)
    elif form == "parametrization":
        nn.utils.parametrizations.weight_norm(model.fc)
    halves = {"fc.weight_g": torch.tensor([[1.0], [2.0]]), "fc.weight_v": torch.tensor([[3.0, 4.0], [0.0, 0.5]])}
    load_brevitas(model, halves)
    x = torch.eye(2)
    torch.testing.assert_close(model(x), torch.tensor([[0.6, 0.0], [0.8, 2.0]]), atol=2 / 127, rtol=0)


def test_half_precision():
    model = linear().half()
    load_brevitas(model, WEIGHT)
    assert model.fc.weight.dtype == torch.float16
    assert model.fc.weight.tolist() == WEIGHT["fc.weight"].tolist()


# What doesn't fit


@pytest.mark.parametrize(
    ("layer", "file", "problem"),
    [
        (
            qnn.QuantIdentity(),
            {},
            "the file has no range for it: there it is constant, or the model was saved before it saw any data. Write "
            "the constant, such as max_value=1.0, or save the model after some training steps.",
        ),
        (
            qnn.QuantIdentity(max_value=1.0),
            act(5.0),
            "the file has a stored range, and the model has a constant scale. Write scaling='calibrated'.",
        ),
        (
            qnn.QuantIdentity(scaling="statistic"),
            act(5.0),
            "the file has a stored range, and the model has StatisticScaling. Write scaling='calibrated'.",
        ),
        (
            qnn.QuantIdentity(),
            act([[1.0], [2.0]]),
            "the file has 2 ranges of shape (2, 1), and the model has one. Write act_quant=Int8ActPerChannel.",
        ),
        (
            qnn.QuantIdentity(axis=1, channels=3),
            act([[1.0, 2.0]]),
            "the file has 2 ranges of shape (1, 2), and the model has 3 (axis 1).",
        ),
        (
            qnn.QuantIdentity(axis=1),
            act([[[1.0], [2.0]]]) | {},
            None,
        ),
        (
            qnn.QuantIdentity(axis=1),
            act([[1.0, 2.0]] * 2),
            "the file has 4 ranges of shape (2, 2), and the model has one for each of axis 1.",
        ),
        (
            qnn.QuantIdentity(axis=1, channels=3),
            act(1.0),
            "the file has one range, and the model has 3 (axis 1). Write act_quant=Int8Act.",
        ),
        (
            qnn.QuantIdentity(),
            act(-2.5),
            "the file has -2.5 for its range: the logarithm of one. Write restriction='log' or 'power_of_two', as the "
            "file's quantizer has it.",
        ),
        (
            qnn.QuantIdentity(),
            act(5.0) | act(-1.0, ZERO),
            "the file has a zero point, and the model has none. Write zero_point='range' with a statistic that has a "
            "lower end, or start from ShiftedUint8Act.",
        ),
        (
            qnn.QuantIdentity(act_quant=ShiftedUint8Act),
            act(5.0),
            "the file has no zero point, and the model has one. Write zero_point=None.",
        ),
        (
            qnn.QuantIdentity(),
            act(5.0) | act(4.0, BITS),
            "the file has a learned bit width, and the model has 8 bits. Write bit_width=LearnedBitWidth.",
        ),
        (
            qnn.QuantIdentity(bit_width=LearnedBitWidth),
            act(5.0),
            "the file has no learned bit width. Write the constant one that the file's quantizer has, such as "
            "bit_width=8.",
        ),
        (
            qnn.QuantIdentity(bit_width=LearnedBitWidth),
            act(5.0) | act(8.7, BITS),
            "the file has a bit width of 10.7, and the model stops at 8. Write max_bit_width=11.",
        ),
        (
            qnn.QuantIdentity(),
            act(5.0) | act(4.0, "msb_clamp_bit_width_impl.bit_width"),
            "the file has 4 bits, and the model has 8. Write bit_width=4.",
        ),
        (
            qnn.QuantIdentity(),
            act(5.0) | act(4.0, "pre_scaling_impl.value"),
            "nothing in this library corresponds to pre_scaling_impl.value, which the file has. Write a scaling of "
            "your own (docs/your-own-quantizer.md) and set it from the file.",
        ),
    ],
)
def test_numbers_of_a_quantizer_that_do_not_fit(layer, file, problem):
    model = model_of(act=copy.deepcopy(layer))
    if problem is None:
        load_brevitas(model, file)
    else:
        assert refused(model, file) == (f"act.act_quant: {problem}",)


@pytest.mark.parametrize(
    ("options", "file", "problem"),
    [
        (
            {"weight_scaling": "learned"},
            {},
            "fc.weight_quant: the file has no range for it: there it follows the weight, or was never used. Write "
            "weight_scaling='statistic', which follows the weight too.",
        ),
        (
            {},
            weight(1.0),
            "fc.weight_quant: the file has a stored range, and the model has StatisticScaling. Write "
            "weight_scaling='learned'.",
        ),
        (
            {"weight_scaling": "learned"},
            weight([[1.0], [2.0]]),
            "fc.weight_quant: the file has 2 ranges of shape (2, 1), and the model has one. Write "
            "weight_quant=Int8WeightPerChannel.",
        ),
        (
            {"weight_quant": Int8WeightPerChannelLearned},
            weight(1.0),
            "fc.weight_quant: the file has one range, and the model has 2 (axis 0). Write "
            "weight_quant=Int8WeightPerTensor.",
        ),
        (
            {"weight_scaling": "learned"},
            weight(1.0) | weight(-1.0, ZERO),
            "fc.weight_quant: the file has a zero point, and the model has none. Write weight_zero_point='range' with "
            "a statistic that has a lower end, or start from ShiftedUint8WeightPerTensor.",
        ),
        (
            {"weight_quant": None},
            weight(1.0),
            "fc.weight_quant: the file has the state of a quantizer, and the model has none there. Write "
            "weight_quant=Int8WeightPerTensor.",
        ),
        (
            {},
            act(1.0, place="fc"),
            "fc.act_quant: the file has the state of a quantizer, and QuantLinear has weight_quant, bias_quant, "
            "input_quant, output_quant, grad_quant.",
        ),
        (
            {},
            act(1.0, place="fd"),
            "fd.act_quant: the file has the state of a quantizer, and the model has no module 'fd'.",
        ),
    ],
)
def test_numbers_of_weights_that_do_not_fit(options, file, problem):
    assert refused(linear(**options), WEIGHT | file) == (problem,)


def test_quantizer_of_a_layer_without_any():
    assert refused(model_of(act=nn.ReLU()), act(1.0)) == (
        "act.act_quant: the file has the state of a quantizer, and ReLU has no quantizers.",
    )


def test_module_of_nearly_that_name():
    model = model_of(features=model_of(act=qnn.QuantReLU(max_value=1.0)))
    assert refused(model, act(1.0, place="feature.act")) == (
        "feature.act.act_quant: the file has the state of a quantizer, and the model has no module 'feature.act'. Did "
        "you mean features.act?",
    )


@pytest.mark.parametrize("path", ["rnn", ""])
def test_recurrent_layers(path):
    layer = qnn.QuantLSTM(2, 2)
    file = {f"{path}.layers.0.0.input_gate_params.bias".lstrip("."): torch.ones(2)}
    assert refused(model_of(rnn=layer) if path else layer, file) == (
        f"{path or 'the model'}: the recurrent layer of the file has ranges for each gate and rounds other products, "
        "so that its numbers mean nothing here. Load its weights alone (docs/coming-from-brevitas.md), and calibrate.",
    )


def test_factor_of_a_statistic_that_is_not_there():
    assert refused(linear(weight_scaling="learned"), weight(0.5, GAIN)) == ("fc: the file has nothing for weight.",)
    assert refused(model_of(act=qnn.QuantIdentity()), act(0.5, GAIN)) == (
        "act.act_quant: the file has no range for it: there it is constant, or the model was saved before it saw any "
        "data. Write the constant, such as max_value=1.0, or save the model after some training steps.",
    )


def test_shapes():
    assert refused(linear(), {"fc.weight": torch.ones(2, 3)}) == (
        "fc.weight: the file has the shape (2, 3), and the model (2, 2).",
    )


def test_quantizer_of_the_users_own_keeps_what_the_file_does_not_know():
    model = model_of(act=qnn.QuantIdentity(act_quant=BinaryAct))
    assert refused(model, act(1.0)) == ("act.act_quant: Signs keeps no state, and the file has its range.",)
    assert str(load_brevitas(model, {})) == (
        "load_brevitas: 0 changed, 1 left (tensors 0)\n  act.act_quant  left: it has no state"
    )


def test_all_problems_are_named_at_once():
    model = model_of(act=qnn.QuantIdentity(max_value=1.0), fc=qnn.QuantLinear(2, 2, weight_scaling="learned"))
    with pytest.raises(
        CheckpointError,
        match=re.escape(
            "load_brevitas: 3 things don't fit, and nothing was loaded.\n"
            "  fc: the file has nothing for bias. Write bias=False.\n"
            "  act.act_quant: the file has a stored range, and the model has a constant scale. Write "
            "scaling='calibrated'.\n"
            "  fc.weight_quant: the file has no range for it: there it follows the weight, or was never used. Write "
            "weight_scaling='statistic', which follows the weight too."
        )
        + r"\Z",
    ):
        load_brevitas(model, WEIGHT | act(1.0))


def test_errors_are_of_the_family():
    assert issubclass(CheckpointError, GraphError)


def test_tensors_without_data():
    with torch.device("meta"):
        model = linear()
    with pytest.raises(CheckpointError) as caught:
        load_brevitas(model, WEIGHT)
    assert caught.value.problems == (
        "the model: it has tensors without data. Write model.to_empty(device='cpu') before.",
    )


class Stubborn(nn.Linear):
    """A layer that refuses to load, after others have."""

    error: type[Exception] = RuntimeError

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self.tried = True
        raise self.error("never")


@pytest.mark.parametrize("error", [RuntimeError, KeyError])
def test_module_that_refuses_leaves_everything_as_it_was(error):
    model = model_of(act=qnn.QuantIdentity(), fc=qnn.QuantLinear(2, 2, bias=False), last=Stubborn(1, 1, bias=False))
    model.last.error = error
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(CheckpointError if error is RuntimeError else KeyError) as caught:
        load_brevitas(model, act(5.12) | WEIGHT | {"last.weight": torch.ones(1, 1)})
    if error is RuntimeError:
        assert caught.value.problems == ("the model refuses the state: never",)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert not hasattr(model.last, "tried")
    assert not model.act.act_quant.calibrated


def test_no_model():
    with pytest.raises(QuantizerError, match=re.escape("load_brevitas")):
        load_brevitas({}, {})
