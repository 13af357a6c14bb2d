"""What training does besides steps: checkpointing, accumulation, autocast, and modules called as functions."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import bitwright.nn as qnn
from bitwright.qcore import QuantTensorError, values_of
from bitwright.quantizers import (
    Int8Act,
    Int8BiasOwnScale,
    Int8WeightPerChannel,
    Int8WeightPerChannelLearned,
    Int8WeightPerTensorLearned,
    Int32Bias,
    ShiftedUint8Act,
    ShiftedUint8WeightPerTensor,
)

STEPS = 3  # of collection
COLLECTED = Int8Act(calibration_steps=STEPS)


def carried(act_quant=COLLECTED):
    """QuantTensors between layers, scales of every kind."""
    torch.manual_seed(0)
    return nn.Sequential(
        qnn.QuantIdentity(act_quant=act_quant, return_quant_tensor=True),
        qnn.QuantLinear(6, 8, bias_quant=Int32Bias, weight_quant=Int8WeightPerChannelLearned),
        qnn.QuantReLU(calibration_steps=STEPS, return_quant_tensor=True),
        qnn.QuantLinear(8, 8, bias_quant=Int32Bias, weight_quant=Int8WeightPerChannel),
        qnn.QuantIdentity(act_quant=ShiftedUint8Act, calibration_steps=STEPS),
        qnn.QuantLinear(8, 3, weight_quant=ShiftedUint8WeightPerTensor),
    )


def plain(weight_quant=Int8WeightPerChannelLearned):
    """Plain tensors between layers, scales that are learned."""
    torch.manual_seed(0)
    return nn.Sequential(
        qnn.QuantIdentity(calibration_steps=STEPS),
        qnn.QuantLinear(6, 8, weight_quant=weight_quant, bias_quant=Int8BiasOwnScale(scaling="learned")),
        qnn.QuantReLU(calibration_steps=STEPS, bit_width=5),
        qnn.QuantLinear(8, 3, weight_quant=Int8WeightPerTensorLearned),
    )


def batch(step=0, size=4):
    return torch.randn(size, 6, generator=torch.Generator().manual_seed(step))


def collected(model):
    """Ranges are known, and everything is learned; offsets have left 0."""
    for step in range(STEPS):
        model(batch(step))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_offset"):
                parameter.add_(0.01)
    return model


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        other = expected[name]
        assert (tensor is None) == (other is None), name
        assert tensor is None or torch.equal(tensor, other), name


# Gradient checkpointing


def run(model, part=(0, None), use_reentrant=None):
    """Gradients of parameters and input, and the state after; with ``use_reentrant`` part of the model checkpointed."""
    model = copy.deepcopy(model)
    first, last = part
    x = batch(7).requires_grad_()
    block, inner = model[first:last], model[:first](x)
    inner = block(inner) if use_reentrant is None else checkpoint(block, inner, use_reentrant=use_reentrant)
    out = inner if last is None else model[last:](inner)
    out.square().sum().backward()
    return {**gradients(model), "input": x.grad}, model.state_dict()


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("part", [(0, None), (1, 4), (0, 3)])
@pytest.mark.parametrize("make", [carried, plain])
def test_checkpointing_computes_the_same_gradients(make, part, use_reentrant):
    model = collected(make())
    expected, state = run(model, part)
    found, twin = run(model, part, use_reentrant)
    assert_equal(found, expected)
    assert all(tensor is not None for tensor in found.values())
    assert_equal(twin, state)
    assert_equal(twin, model.state_dict())


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("scaling", ["calibrated", "running"])
def test_checkpointing_counts_a_batch_once(scaling, use_reentrant):
    model = carried(Int8Act(scaling=scaling))
    expected, state = run(model)
    found, twin = run(model, use_reentrant=use_reentrant)
    assert state["0.act_quant.scaling.steps"] == 1
    assert_equal(twin, state)
    assert_equal(found, expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_the_step_that_ends_the_collection(use_reentrant):
    model = carried(Int8Act(calibration_steps=1))
    expected, state = run(model, (0, 1))
    found, twin = run(model, (0, 1), use_reentrant)
    assert expected["0.act_quant.scaling.magnitude_offset"] is None
    assert_equal(twin, state)
    assert_equal(found, expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_the_first_step_of_a_learned_range(use_reentrant):
    model = carried(Int8Act(scaling="learned"))
    expected, state = run(model, (0, 1))
    found, twin = run(model, (0, 1), use_reentrant)
    assert state["0.act_quant.scaling.steps"] == 1
    assert_equal(twin, state)
    assert_equal(found, expected)


# Gradient accumulation


@pytest.mark.parametrize("make", [carried, plain])
@pytest.mark.parametrize("ranges", ["learned", "constant", "frozen"])
def test_two_halves_of_a_batch_add_up_to_its_gradient(make, ranges):
    """In double precision: only the order of summation differs."""
    model = collected(make()).double()
    if ranges == "constant":
        model[0] = qnn.QuantIdentity(scale=0.05, return_quant_tensor=True).double()
    elif ranges == "frozen":
        model[0] = qnn.QuantIdentity(scaling="running", return_quant_tensor=True).double()
        model[0](batch(0).double())
        model[0].eval()
    twin, x, target = copy.deepcopy(model), batch(7).double(), torch.linspace(-1, 1, 12).double().reshape(4, 3)
    (model(x) - target).square().mean().backward()
    for half, part in zip(x.chunk(2), target.chunk(2), strict=True):
        ((twin(half) - part).square().mean() / 2).backward()
    assert_equal(model.state_dict(), twin.state_dict())
    for name, expected in gradients(model).items():
        torch.testing.assert_close(gradients(twin)[name], expected, rtol=1e-10, atol=1e-12, msg=name)
        assert expected.any(), name


# Autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [carried, plain])
def test_training_under_autocast(make, dtype):
    model, scales = make(), []
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def check(layer, inputs, out):
        values = values_of(out).detach()
        grid = layer.act_quant.grid(values)
        assert grid.from_int(grid.to_int(values)).to(values.dtype).equal(values)
        scales.append(grid.scale.dtype)

    for layer in model:
        if isinstance(layer, (qnn.QuantIdentity, qnn.QuantReLU)):
            layer.register_forward_hook(check)
    losses = []
    for step in range(STEPS + 5):
        with torch.autocast("cpu", dtype):
            out = model(batch(step % 2))
            loss = (out.float() - 1).square().mean()
        assert out.dtype == dtype
        assert out.isfinite().all()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for name, parameter in model.named_parameters():
            idle = step < STEPS and "act_quant" in name
            assert parameter.dtype == torch.float32
            assert (parameter.grad is None) == idle, name
            assert idle or parameter.grad.isfinite().all(), name
    assert all(parameter.grad.any() for parameter in model.parameters())
    assert {each.dtype for each in model.buffers()} == {torch.float32, torch.int64}
    assert losses[-1] < losses[1]  # on the same batch
    for layer in model:
        if isinstance(layer, qnn.QuantLinear):
            weight = layer.quant_weight()
            scales.append(weight.scale.dtype)
            assert torch.equal(weight.grid.from_int(layer.int_weight()), weight.value)
    assert set(scales) == {torch.float32}
    assert len(scales) == (3 if make is carried else 2) * (STEPS + 5) + (3 if make is carried else 2)


# Modules called as functions


def elsewhere(model):
    """Other values for all parameters and buffers, and a model that has them."""
    state = {
        name: (tensor.detach() * 1.25 if tensor.is_floating_point() else tensor.clone())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    twin = copy.deepcopy(model)
    twin.load_state_dict({**model.state_dict(), **state})
    return state, twin


@pytest.mark.parametrize("make", [carried, plain])
def test_functional_call_uses_what_it_is_given(make):
    model = collected(make())
    state, twin = elsewhere(model)
    before, x = copy.deepcopy(model.state_dict()), batch(7)
    expected = twin(x)
    assert not torch.equal(expected, model(x))
    leaves = {name: each.requires_grad_() for name, each in state.items() if each.is_floating_point()}
    out = functional_call(model, state, (x,))
    assert torch.equal(out, expected)
    names = [name for name, _ in model.named_parameters()]
    found = torch.autograd.grad(out.square().sum(), [leaves[name] for name in names])
    expected.square().sum().backward()
    assert_equal(dict(zip(names, found, strict=True)), gradients(twin))
    assert_equal(model.state_dict(), before)
    assert all(each is None for each in gradients(model).values())


@pytest.mark.parametrize("make", [carried, plain])
def test_functional_call_leaves_no_trace_in_evaluation(make):
    """What is cached belongs to the parameters and buffers it was worked out from."""
    model = collected(make()).eval()
    state, twin = elsewhere(model)
    x = batch(7)
    with torch.no_grad():
        own, other = model(x), twin(x)
        for _ in range(2):
            assert torch.equal(functional_call(model, state, (x,)), other)
            assert torch.equal(model(x), own)


def test_functional_call_collects_into_the_buffers_it_is_given():
    model = qnn.QuantIdentity(act_quant=ShiftedUint8Act, statistic="min_max")
    model(torch.tensor([-1.0, 2.0]))
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    functional_call(model, buffers, (torch.tensor([-2.0, 4.0]),))
    scaling = model.act_quant.scaling
    assert (scaling.magnitude.item(), scaling.low.item(), scaling.steps.item()) == (3, -1, 1)
    found = {name.rpartition(".")[2]: tensor.tolist() for name, tensor in buffers.items()}
    assert found == {"magnitude_base": [pytest.approx(3.3)], "low_base": [pytest.approx(-1.1)], "steps": 2}


def squares(model):
    return lambda parameters, x: functional_call(model, parameters, (x,)).square().sum()


def detached(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def close(found, expected):
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-11, msg=name)


def test_gradients_by_torch_func():
    model = collected(plain()).double()
    x = batch(7).double()
    found = grad(squares(model))(detached(model), x)
    model(x).square().sum().backward()
    close(found, gradients(model))


def test_gradients_of_each_example():
    """Those that vmap computes at once are those that examples have one by one."""
    model = collected(plain()).double()
    x = batch(7).double()
    found = vmap(grad(squares(model)), in_dims=(None, 0))(detached(model), x[:, None])
    for index in range(4):
        model.zero_grad()
        model(x[index : index + 1]).square().sum().backward()
        close({name: each[index] for name, each in found.items()}, gradients(model))


def assert_mapped(model, gradients_on=True):
    """In double precision: vmap adds up the products in another order, which moves nothing over a rounding boundary."""
    model, x = model.double(), batch(7).double()
    with torch.set_grad_enabled(gradients_on):
        torch.testing.assert_close(vmap(model)(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # without gradients, of vmap's own
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients_on", [True, False])
def test_examples_mapped_over(training, gradients_on):
    assert_mapped(collected(plain()).train(training), gradients_on)


def test_models_mapped_over():
    models = [collected(plain()).double() for _ in range(3)]
    with torch.no_grad():
        for index, model in enumerate(models):
            for parameter in model.parameters():
                parameter.mul_(1 + index / 8)
    x = batch(7).double()
    found = vmap(lambda *state: functional_call(models[0], state, (x,)))(*stack_module_state(models))
    for out, model in zip(found, models, strict=True):
        torch.testing.assert_close(out, model(x), rtol=1e-12, atol=1e-12)


def test_gradients_by_torch_func_through_quant_tensors():
    model = collected(carried()).double()
    with pytest.raises(QuantTensorError) as error:
        grad(squares(model))(detached(model), batch(7).double())
    assert str(error.value) == (
        "QuantTensors can't go through the transforms of torch.func, such as grad and vmap. Give the layers "
        "return_quant_tensor=False for them, or take gradients with torch.autograd.grad."
    )


@pytest.mark.parametrize("weight_quant", [Int8WeightPerChannel, ShiftedUint8WeightPerTensor])
def test_examples_mapped_over_with_weights_that_are_measured(weight_quant):
    assert_mapped(collected(plain(weight_quant)))
