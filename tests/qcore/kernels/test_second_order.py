"""Derivatives of derivatives, forward derivatives, maps and traces: those of the definition."""

import io
import warnings

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import bitwright.nn as qnn
from bitwright.qcore import AbsMax, PerBlock, PerGroup, PerToken, composed_fake_quant, fake_quant
from bitwright.qcore.formats.integers import Interval
from bitwright.qcore.granularity import granularity_of
from bitwright.qcore.kernels.derivatives import clamp_through, straight_through
from bitwright.qcore.kernels.fused import (
    EagerFakeQuant,
    MagnitudeFakeQuant,
    TracedFakeQuant,
)
from bitwright.qcore.kernels.weights import AbsMaxFakeQuant, AbsMaxRowsFakeQuant
from bitwright.qcore.rounding import HalfEven
from bitwright.qcore.scaling.statistics import measured
from bitwright.quantizers import (
    Int8WeightPerChannel,
    Int8WeightPerTensor,
    Int8WeightPerTensorLearned,
    ShiftedUint8Act,
)

pytestmark = [  # torch's own forward derivatives go through torch.jit.script
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

ROUND = HalfEven()


def double(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def derivatives(function, inputs, order=3):
    """The value, and ever higher derivatives of it, each in a direction of its own."""
    leaves = [each.detach().clone().requires_grad_() for each in inputs]
    level = function(*leaves)
    found = [[level.detach()]]
    for seed in range(order):
        weights = double(*level.shape, seed=seed + 10)
        gradients = torch.autograd.grad(
            (level * weights).sum(), leaves, create_graph=True, allow_unused=True, materialize_grads=True
        )
        found.append([each.detach() for each in gradients])
        level = torch.cat([each.reshape(-1) for each in gradients])
        level = level + 0 * sum(leaf.sum() for leaf in leaves)  # where nothing depends on them any more
    return found


def same(function, definition, *inputs):
    wanted = derivatives(definition, inputs)
    for one, other in zip(derivatives(function, inputs), wanted, strict=True):
        for each, expected in zip(one, other, strict=True):
            torch.testing.assert_close(each, expected, rtol=1e-9, atol=1e-9)
    assert any(each.abs().max() > 0 for each in wanted[2])  # the second derivatives say something


# Each function against the definition. What is squared makes second derivatives of what is linear.


@pytest.mark.parametrize("function", [EagerFakeQuant, TracedFakeQuant])
@pytest.mark.parametrize("shape", [(), (4, 1)])
@pytest.mark.parametrize(("low", "high", "relu", "clips"), [(-4, 3, False, True), (0, 7, True, True)])
def test_fake_quant(function, shape, low, high, relu, clips):
    scale = double(*shape).abs() / 4 + 0.2

    def fused(x, scale):
        return function.apply(x, scale, None, Interval(low, high), ROUND, relu, clips).square()

    def defined(x, scale):
        return composed_fake_quant(x.relu() if relu else x, scale, low, high).square()

    same(fused, defined, double(4, 6), scale)


@pytest.mark.parametrize("function", [EagerFakeQuant, TracedFakeQuant])
@pytest.mark.parametrize("shape", [(), (4, 1)])
def test_fake_quant_with_zero_point(function, shape):
    scale, zero_point = double(*shape).abs() / 4 + 0.2, torch.full(shape, 2.0, dtype=torch.float64)

    def fused(*leaves):
        return function.apply(*leaves, Interval(0, 7), ROUND, False, True).square()

    def defined(x, scale, zero_point):
        return composed_fake_quant(x, scale, 0, 7, zero_point).square()

    same(fused, defined, double(4, 6), scale, zero_point)


@pytest.mark.parametrize("function", [EagerFakeQuant, TracedFakeQuant])
@pytest.mark.parametrize("relu", [False, True])
def test_gradient_through_what_is_clipped(function, relu):
    def fused(x, scale):
        return function.apply(x, scale, None, Interval(0, 7), ROUND, relu, False).square()

    def defined(x, scale):
        return composed_fake_quant(x, scale, 0, 7, relu=relu, clips=False).square()

    x, scale = torch.tensor([-9.0, 0.3, 9.0], dtype=torch.float64), torch.tensor(0.25, dtype=torch.float64)
    same(fused, defined, x, scale)
    leaf = x.clone().requires_grad_()
    function.apply(leaf, scale, None, Interval(0, 7), ROUND, relu, False).sum().backward()
    assert leaf.grad.tolist() == [0 if relu else 1, 1, 1]


def test_second_derivatives_by_hand():
    """d2/ds2 of (s * bound)**2 where clipped: 2 * bound**2; the part inside the range is x**2, whatever the scale."""
    x = torch.tensor([9.0, 0.3], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    (of_scale,) = torch.autograd.grad(fake_quant(x, scale, -8, 7).square().sum(), scale, create_graph=True)
    assert of_scale.item() == pytest.approx(2 * 0.25 * 7**2 + 2 * 0.25 * (1 - 1.2))
    across, again = torch.autograd.grad(of_scale, (x, scale))
    # inside, the gradient of y to x is 1 and to s is 1 - 1.2, both constant: d/dx of 2 y (1 - 1.2)
    assert across.tolist() == pytest.approx([0, 2 * (1 - 1.2)])
    assert again.item() == pytest.approx(2 * 7**2 + 2 * (1 - 1.2) ** 2)


@pytest.mark.parametrize("function", [AbsMaxFakeQuant, AbsMaxRowsFakeQuant])
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 2), (4,)])
def test_weights(function, detached, shape):
    def fused(x):
        return function.apply(x, 1e-10, Interval(-3, 3), ROUND, detached)[0].square()

    def defined(x):
        source = x.detach() if detached else x
        rows = source.reshape(1 if function is AbsMaxFakeQuant else shape[0], -1)
        scale = rows.abs().amax(1) / 3
        scale = scale.reshape(()) if function is AbsMaxFakeQuant else scale.reshape(-1, *[1] * (len(shape) - 1))
        return composed_fake_quant(x, scale, -3, 3).square()

    same(fused, defined, double(*shape))


@pytest.mark.parametrize("function", [AbsMaxFakeQuant, AbsMaxRowsFakeQuant])
def test_weights_below_the_smallest_scale(function):
    same(
        lambda x: function.apply(x, 3.0, Interval(-3, 3), ROUND, False)[0].square(),
        lambda x: composed_fake_quant(x, torch.tensor(1.0, dtype=x.dtype), -3, 3).square(),
        double(2, 3),
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("shape", "state"), [(None, (1,)), ([1, -1], (5,))])
@pytest.mark.parametrize(("low", "high", "relu"), [(-4, 3, False), (0, 7, True)])
def test_learned_scales(sign, shape, state, low, high, relu):
    base, offset = sign * (double(*state).abs() + 0.5), double(*state, seed=1) / 10
    threshold = -low if low else high

    def fused(x, base, offset):
        rest = (shape, threshold, 1e-10, Interval(low, high), ROUND, relu, True)
        return MagnitudeFakeQuant.apply(x, base, offset, rest)[0].square()

    def defined(x, base, offset):
        scale = (base + offset).abs() / threshold
        scale = scale.reshape(shape or ())
        return composed_fake_quant(x.relu() if relu else x, scale, low, high).square()

    same(fused, defined, double(4, 5), base, offset)


def test_learned_scale_at_the_smallest():
    x, rest = double(4), (None, 4, 2.0, Interval(-4, 3), ROUND, False, True)
    same(
        lambda x, base, offset: MagnitudeFakeQuant.apply(x, base, offset, rest)[0].square(),
        lambda x, base, offset: (
            composed_fake_quant(x, torch.tensor(0.5, dtype=x.dtype), -4, 3).square() + 0 * (base + offset).sum()
        ),
        x,
        torch.tensor([1.0], dtype=torch.float64),
        torch.tensor([0.1], dtype=torch.float64),
    )


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_largest_magnitude(axis):
    granularity = granularity_of(axis)

    def defined(x):
        return (x.abs().amax() if axis is None else x.abs().amax(1 - axis)).pow(3)

    same(lambda x: measured(AbsMax(), x, granularity).reshape(defined(x).shape).pow(3), defined, double(3, 4))


@pytest.mark.parametrize("granularity", [PerGroup(2), PerGroup(3), PerBlock((2, 2)), PerToken()], ids=str)
def test_largest_magnitude_of_blocks(granularity):
    def defined(x):
        steps = granularity.block(x.shape)
        cut = [part for rows in x.split(steps[0], 0) for part in rows.split(steps[1], 1)]
        return torch.stack([each.abs().amax() for each in cut]).pow(3)

    same(lambda x: measured(AbsMax(), x, granularity).pow(3), defined, double(3, 4))


def test_ordinary_gradients_record_nothing():
    x = double(4, 5).requires_grad_()
    for y in (
        EagerFakeQuant.apply(x, torch.tensor(0.25), None, Interval(-4, 3), ROUND, False, True),
        AbsMaxFakeQuant.apply(x, 1e-10, Interval(-3, 3), ROUND, False)[0],
        AbsMaxRowsFakeQuant.apply(x, 1e-10, Interval(-3, 3), ROUND, False)[0],
    ):
        assert not torch.autograd.grad(y.sum(), x, retain_graph=True)[0].requires_grad
        assert torch.autograd.grad(y.square().sum(), x, create_graph=True)[0].requires_grad


# Layers. Each transform against autograd's own gradients, and those against the definition.

LAYERS = {
    "per tensor": lambda: qnn.QuantLinear(5, 3, weight_bit_width=3),
    "per channel": lambda: qnn.QuantLinear(5, 3, weight_quant=Int8WeightPerChannel, weight_bit_width=3),
    "learned": lambda: qnn.QuantLinear(5, 3, weight_quant=Int8WeightPerTensorLearned, weight_bit_width=3),
    "activation": lambda: nn.Sequential(qnn.QuantLinear(5, 3), qnn.QuantReLU(bit_width=3, calibration_steps=1)),
    "shifted": lambda: nn.Sequential(
        qnn.QuantIdentity(act_quant=ShiftedUint8Act, bit_width=3, calibration_steps=1), qnn.QuantLinear(5, 3)
    ),
}


class Case:
    """A model, its parameters, a loss of them and of data, and the derivatives that autograd gives."""

    def __init__(self, name):
        torch.manual_seed(0)
        self.model = LAYERS[name]().double()
        self.x = double(8, 5)
        for _ in range(2):
            self.model(self.x)
        self.parameters = {key: each.detach().clone() for key, each in self.model.named_parameters()}
        self.tangents = {key: torch.randn_like(each) for key, each in self.parameters.items()}

    def loss(self, parameters, x=None):
        return functional_call(self.model, parameters, (self.x if x is None else x,)).square().sum()

    def gradients(self, x=None):
        leaves = {key: each.clone().requires_grad_() for key, each in self.parameters.items()}
        first = torch.autograd.grad(self.loss(leaves, x), list(leaves.values()), create_graph=True)
        along = sum((each * tangent).sum() for each, tangent in zip(first, self.tangents.values(), strict=True))
        second = torch.autograd.grad(along, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return tuple(dict(zip(leaves, [each.detach() for each in found], strict=True)) for found in (first, second))

    def along(self, matrix):
        """A Hessian times the tangents."""
        return {
            key: sum(torch.tensordot(row[name], each, each.ndim) for name, each in self.tangents.items())
            for key, row in matrix.items()
        }


@pytest.fixture(params=LAYERS)
def case(request):
    return Case(request.param)


def equal(found, expected):
    torch.testing.assert_close(dict(found), expected, rtol=1e-9, atol=1e-9)


def test_hessians_are_symmetric(case):
    matrix = hessian(case.loss)(case.parameters)
    for one, row in matrix.items():
        for other, block in row.items():
            rows = case.parameters[one].numel()
            torch.testing.assert_close(block.reshape(rows, -1), matrix[other][one].reshape(-1, rows).T)


@pytest.mark.parametrize("transform", [grad, jacrev, jacfwd])
def test_first_derivatives(case, transform):
    equal(transform(case.loss)(case.parameters), case.gradients()[0])


def test_gradients_of_each_sample(case):
    found = vmap(grad(case.loss), (None, 0))(case.parameters, case.x)
    for at, sample in enumerate(case.x):
        equal({key: each[at] for key, each in found.items()}, case.gradients(sample)[0])


@pytest.mark.parametrize("recorded", [True, False])
def test_forward_derivatives(case, recorded):
    """Forward derivatives take no notice of `torch.no_grad`."""
    expected = sum((each * case.tangents[key]).sum() for key, each in case.gradients()[0].items())
    with torch.set_grad_enabled(recorded):
        value, found, *_ = jvp(case.loss, (case.parameters,), (case.tangents,))
    torch.testing.assert_close(value, case.loss(case.parameters))
    torch.testing.assert_close(found, expected)


def test_forward_derivatives_of_dual_numbers(case):
    expected = sum((each * case.tangents[key]).sum() for key, each in case.gradients()[0].items())
    with forward_ad.dual_level(), torch.no_grad():
        duals = {key: forward_ad.make_dual(each, case.tangents[key]) for key, each in case.parameters.items()}
        found = forward_ad.unpack_dual(case.loss(duals)).tangent
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "transform",
    [hessian, lambda loss: jacrev(jacrev(loss)), lambda loss: jacfwd(jacfwd(loss)), lambda loss: jacrev(jacfwd(loss))],
    ids=["hessian", "reverse, reverse", "forward, forward", "reverse, forward"],
)
def test_second_derivatives(case, transform):
    equal(case.along(transform(case.loss)(case.parameters)), case.gradients()[1])


def test_hessian_vector_products(case):
    expected = case.gradients()[1]

    def slope(parameters):
        return sum((each * case.tangents[key]).sum() for key, each in grad(case.loss)(parameters).items())

    equal(grad(slope)(case.parameters), expected)
    equal(jvp(grad(case.loss), (case.parameters,), (case.tangents,))[1], expected)


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_autograd_functional(case, vectorize):
    names = list(case.parameters)

    def loss(*leaves):
        return case.loss(dict(zip(names, leaves, strict=True)))

    found = torch.autograd.functional.hessian(loss, tuple(case.parameters.values()), vectorize=vectorize)
    matrix = {key: dict(zip(names, row, strict=True)) for key, row in zip(names, found, strict=True)}
    equal(case.along(matrix), case.gradients()[1])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_several_gradients_at_once(case):
    leaves = [case.x.clone().requires_grad_(), *case.model.parameters()]
    out = case.model(leaves[0])
    units = torch.eye(out.numel(), dtype=out.dtype).reshape(-1, *out.shape)
    found = torch.autograd.grad(out, leaves, units, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(out, leaves, unit, retain_graph=True) for unit in units]
    for one, other in zip(found, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(one, torch.stack(other))
        assert not one.requires_grad


def test_ensembles(case):
    stacked = {key: torch.stack([each, each * 1.1, each * 0.9]) for key, each in case.parameters.items()}
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded):
            found = vmap(lambda parameters: functional_call(case.model, parameters, (case.x,)))(stacked)
            for at, out in enumerate(found):
                one = {key: each[at] for key, each in stacked.items()}
                torch.testing.assert_close(out, functional_call(case.model, one, (case.x,)))


def test_gradient_penalty(case):
    """The second derivatives that reach parameters through the gradient of the input."""
    x = case.x.clone().requires_grad_()
    parameters = list(case.model.parameters())
    (slope,) = torch.autograd.grad(case.model(x).square().sum(), x, create_graph=True)
    found = torch.autograd.grad(slope.square().sum(), [x, *parameters], allow_unused=True, materialize_grads=True)

    def penalty(x, parameters):
        return grad(case.loss, 1)(parameters, x).square().sum()

    of_x, of_parameters = grad(penalty, (0, 1))(case.x, case.parameters)
    for one, other in zip(found, [of_x, *of_parameters.values()], strict=True):
        torch.testing.assert_close(one, other)
    assert any(each.abs().max() > 0 for each in found[1:])


def test_hessian_vector_product_of_a_layer_by_its_definition():
    torch.manual_seed(0)
    layer, x = qnn.QuantLinear(5, 3, bias=False, weight_quant=Int8WeightPerTensor, weight_bit_width=3), double(8, 5)
    same(
        lambda weight: functional_call(layer.double(), {"weight": weight}, (x,)).square(),
        lambda weight: (x @ composed_fake_quant(weight, weight.abs().max() / 3, -3, 3).T).square(),
        layer.weight.double(),
    )


@pytest.mark.parametrize("transform", [grad, lambda loss: vmap(grad(loss)), hessian], ids=["grad", "each", "hessian"])
def test_compiled(transform):
    """Compiled derivatives are eager's, and a function compiled for them is not taken for another."""

    def loss(x):
        largest = AbsMax()(x.reshape(1, -1))
        return (fake_quant(x, torch.tensor(0.25, dtype=x.dtype), -4, 3) * largest).square().sum()

    x, function = double(3, 2), transform(loss)
    made = torch.compile(function, backend="aot_eager")
    torch.testing.assert_close(made(x), function(x))
    torch.testing.assert_close(torch.compile(loss, backend="aot_eager", fullgraph=True)(x), loss(x))
    torch.testing.assert_close(made(x), function(x))


# torch.jit.trace


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_traced_by_jit(gradients, training):
    def function(x, scale, zero_point):
        weight = x * 2
        return (
            fake_quant(x, scale, -8, 7),
            fake_quant(x, scale, 0, 7, zero_point),
            fake_quant(x, scale, 0, 7, relu=True),
            fake_quant(weight, AbsMax()(weight.reshape(1, -1)) / 7, -7, 7, clips=False),
        )

    x, scale, zero_point = double(4, 5), torch.tensor(0.25, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    with torch.set_grad_enabled(gradients):
        x = x.requires_grad_(training)
        traced = torch.jit.trace(function, (x, scale, zero_point))
        torch.jit.save(traced, io.BytesIO())
        other = (x.detach() * 3, scale / 2, zero_point + 1)
        for one, expected in zip(traced(*other), function(*other), strict=True):
            assert torch.equal(one, expected)


def test_trace_keeps_the_gradient():
    x, scale = torch.tensor([-9.0, 0.3, 9.0]), torch.tensor(0.25)
    traced = torch.jit.trace(lambda x, scale: fake_quant(x, scale, -8, 7), (x, scale))
    leaves = x.clone().requires_grad_(), scale.clone().requires_grad_()
    of_x, of_scale = torch.autograd.grad(traced(*leaves).sum(), leaves)
    assert of_x.tolist() == [0, 1, 0]
    assert of_scale.item() == pytest.approx(-8 + (1 - 1.2) + 7)


# What everything is built of


@pytest.mark.parametrize("tensors", [False, True])
def test_clamp_passes_gradients_at_both_ends(tensors):
    x = torch.tensor([-9.0, -8.0, 0.0, 7.0, 9.0, float("inf"), -float("inf")], requires_grad=True)
    low, high = (torch.tensor(-8.0), torch.tensor(7.0)) if tensors else (-8, 7)
    y = clamp_through(x, low, high)
    assert y.tolist() == [-8, -8, 0, 7, 7, 7, -8]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0, 1, 1, 1, 0, 0, 0]
    assert clamp_through(x, low).tolist()[4:6] == [9, float("inf")]
    assert clamp_through(x, None, high).tolist()[:2] == [-9, -8]
    assert clamp_through(torch.tensor(float("nan")), low, high).isnan()


def test_clamp_gives_the_bounds_the_gradient_of_what_they_clip():
    x = torch.tensor([[-9.0, 0.0, 9.0], [-9.0, 2.0, 9.0]])
    high = torch.tensor([[1.0], [2.0]], requires_grad=True)
    y = clamp_through(x, -8, high)
    assert y.tolist() == [[-8, 0, 1], [-8, 2, 2]]
    assert torch.autograd.grad(y.sum(), high)[0].tolist() == [[1], [1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_straight_through_is_exact(dtype):
    x = torch.tensor([0.3, -1e30, float("inf"), float("nan"), 3e38], dtype=torch.float32).to(dtype).requires_grad_()
    values = torch.tensor([0.1, 1e-30, 7.0, 5.0, -2.0], dtype=dtype)
    y = straight_through(x, values)
    assert torch.equal(y, values)
    assert y.dtype == dtype
    assert torch.autograd.grad(y.sum(), x)[0].tolist()[:4] == [1, float(x[1].isfinite()), 0, 0]
    with torch.no_grad():
        assert straight_through(x, values) is values


def test_no_warnings_from_transforms():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grad(lambda x: fake_quant(x, torch.tensor(0.25), -8, 7).sum())(torch.ones(2))
