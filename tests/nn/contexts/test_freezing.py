"""`frozen`: equal bits to evaluation outside of it, whatever happens inside, and nothing is left behind."""

import copy
import pickle
import sys
import threading

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import bitwright.nn as qnn
from bitwright.qcore import QuantTensor, TensorQuant
from bitwright.quantizers import (
    Int8Act,
    Int8ActPerChannel,
    Int8BiasOwnScale,
    Int8WeightPerChannel,
    Int8WeightPerChannelLearned,
    Int8WeightPerTensor,
    Int32Bias,
    ShiftedUint8Act,
    Uint8Act,
)


def x(seed=0):
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def carried():
    """QuantTensors from layer to layer, with biases on the scale of the products."""
    return nn.Sequential(
        qnn.QuantIdentity(return_quant_tensor=True, calibration_steps=1),
        qnn.QuantConv2d(3, 4, 3, weight_quant=Int8WeightPerChannelLearned(bit_width=4), bias_quant=Int32Bias),
        qnn.QuantReLU(return_quant_tensor=True, calibration_steps=1),
        qnn.QuantConv2d(4, 4, 3, bias_quant=Int32Bias, return_quant_tensor=True),
    )


def followed():
    """Grids that follow each input, which are not kept."""
    return nn.Sequential(
        qnn.QuantIdentity(act_quant=Int8Act(scaling="statistic"), return_quant_tensor=True),
        qnn.QuantConv2d(3, 4, 3, weight_quant=Int8WeightPerChannel, bias_quant=Int32Bias),
    )


def plain():
    return nn.Sequential(
        qnn.QuantIdentity(act_quant=Int8ActPerChannel, calibration_steps=1),
        qnn.QuantConv2d(3, 4, 3, weight_quant=Int8WeightPerTensor, bias_quant=Int8BiasOwnScale),
        qnn.QuantIdentity(act_quant=ShiftedUint8Act, calibration_steps=1),
        qnn.QuantConvTranspose2d(4, 4, 2, groups=2, weight_quant=Int8WeightPerChannel, input_quant=Uint8Act(scale=0.1)),
        qnn.QuantGELU(scaling="running"),
    )


@pytest.fixture(params=[carried, followed, plain])
def model(request):
    torch.manual_seed(0)
    made = request.param()
    made(x())
    made(x())
    return made.eval()


def equal(one, other):
    """The same bits, and the same grid."""
    if isinstance(one, QuantTensor):
        if not torch.equal(one.scale, other.scale) or one.bit_width != other.bit_width:
            return False
        one, other = one.value, other.value
    return torch.equal(one, other)


def double(model):
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(2)


def nothing_kept(model):
    return all(getattr(each, "_kept", None) is None for each in model.modules())


def test_equal_bits(model):
    batches = [x(seed) for seed in range(3)]
    with torch.no_grad():
        expected = [model(each) for each in batches]
        with qnn.frozen(model) as same:
            assert same is model
            for _ in range(2):
                assert all(equal(model(each), right) for each, right in zip(batches, expected, strict=True))
            kept = [each for each in model.modules() if getattr(each, "_kept", None)]
            assert any(isinstance(each, qnn.QuantConv2d) for each in kept)
        assert nothing_kept(model)
        assert all(equal(model(each), right) for each, right in zip(batches, expected, strict=True))


def test_inference_mode_then_no_grad_then_gradients(model):
    with torch.no_grad():
        expected = model(x())
    with qnn.frozen(model):
        with torch.inference_mode():
            assert equal(model(x()).clone() if not isinstance(expected, QuantTensor) else model(x()), expected)
        with torch.no_grad():
            assert equal(model(x()), expected)
        out = model(x())
        assert equal(out.detach(), expected)
        (out.value if isinstance(out, QuantTensor) else out).sum().backward()
        assert model[1].weight.grad is not None


def test_batches_of_another_size_and_rank(model):
    with torch.no_grad():
        expected = [model(each) for each in (x()[:1], x()[:, :, :5], x()[:0])]
        with qnn.frozen(model):
            model(x())
            found = [model(each) for each in (x()[:1], x()[:, :, :5], x()[:0])]
    assert all(equal(one, other) for one, other in zip(found, expected, strict=True))


def test_written_parameters_are_seen_when_the_block_ends(model):
    with torch.no_grad():
        before = model(x())
        with qnn.frozen(model):
            model(x())
            double(model)
            if isinstance(before, QuantTensor):  # of the others, float biases and what follows each input are not kept
                assert equal(model(x()), before)
        after = model(x())
        assert not equal(after, before)
        assert equal(after, copy.deepcopy(model)(x()))


def test_training_in_the_block_forgets_what_was_kept(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with qnn.frozen(model):
        for seed in range(3):
            with torch.no_grad():
                model.eval()(x())
            model.train()
            out = model(x(seed))
            optimizer.zero_grad()
            (out.value if isinstance(out, QuantTensor) else out).square().sum().backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            inside = model(x())
    with torch.no_grad():
        assert equal(inside, model(x()))
        assert equal(inside, copy.deepcopy(model)(x()))


def test_nested_blocks_start_anew(model):
    with torch.no_grad(), qnn.frozen(model):
        model(x())
        double(model)
        with qnn.frozen(model):
            assert equal(model(x()), copy.deepcopy(model)(x()))
    assert nothing_kept(model)
    with torch.no_grad(), qnn.frozen(model), qnn.frozen(model[1]):
        assert model[1]._kept == {}
    assert nothing_kept(model)


def test_an_exception_ends_the_block(model):
    with pytest.raises(KeyError), torch.no_grad(), qnn.frozen(model):  # noqa: PT012
        model(x())
        raise KeyError
    assert nothing_kept(model)
    with torch.no_grad():
        double(model)
        assert equal(model(x()), copy.deepcopy(model)(x()))


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict"])
def test_copies_made_in_the_block_hold_nothing(model, way):
    with torch.no_grad(), qnn.frozen(model):
        model(x())
        keys = list(model.state_dict())
        if way == "state_dict":
            copied = copy.deepcopy(model)
            copied.load_state_dict(model.state_dict())
        else:
            copied = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
        assert nothing_kept(copied)
        assert equal(copied(x()), model(x()))
        double(copied)
        assert not equal(copied(x()), model(x()))
    assert list(model.state_dict()) == keys


def test_loading_in_the_block(model):
    """Loading writes parameters in place: it is seen when the block ends, and by what is not kept."""
    other = copy.deepcopy(model)
    double(other)
    with torch.no_grad():
        with qnn.frozen(model):
            model(x())
            model.load_state_dict(other.state_dict())
        assert equal(model(x()), other(x()))


def test_a_replaced_weight_and_a_replaced_quantizer_are_seen_at_once():
    model = qnn.QuantLinear(2, 1, bias=False, weight_bit_width=2).eval()
    with torch.no_grad(), qnn.frozen(model):
        model.weight.copy_(torch.tensor([[1.0, 0.4]]))
        assert model(torch.eye(2)).tolist() == [[1], [0]]
        model.weight = nn.Parameter(torch.tensor([[2.0, 1.8]]))
        assert model(torch.eye(2)).tolist() == [[2], [2]]
        model.weight_quant = None
        assert model(torch.eye(2)).tolist() == [[2], [pytest.approx(1.8)]]


def test_what_is_asked_is_not_what_is_kept(model):
    with torch.no_grad(), qnn.frozen(model):
        model(x())
        before = model[1].int_weight()
        scale = model[1].quant_weight().scale.clone()
        model[1].weight.mul_(-1)
        assert torch.equal(model[1].int_weight(), -before)
        assert torch.equal(model[1].quant_weight().scale, scale)


def test_a_bias_follows_another_input_scale():
    """One layer behind two quantizers: its bias is kept for the scale that it was worked out for."""
    layer = qnn.QuantLinear(2, 2, bias_quant=Int32Bias).eval()
    inputs = [qnn.QuantIdentity(scale=scale, return_quant_tensor=True).eval() for scale in (2**-3, 2**-6)]
    both = nn.ModuleList([layer, *inputs])
    ones = torch.full((1, 2), 0.3)
    with torch.no_grad():
        expected = [layer(each(ones)) for each in inputs]
        with qnn.frozen(both):
            for _ in range(3):
                assert all(torch.equal(layer(each(ones)), right) for each, right in zip(inputs, expected, strict=True))


def test_a_range_that_saw_no_data_is_not_kept():
    model = qnn.QuantIdentity(act_quant=Int8Act).eval()
    with torch.no_grad(), qnn.frozen(model):
        with pytest.warns(UserWarning, match="is evaluated before it saw any data"):
            assert model(torch.tensor([1.28])).item() == pytest.approx(1.27)
        assert model(torch.tensor([128.0])).item() == 127


def test_compiled_in_the_block(model):
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        expected = model(x())
        with qnn.frozen(model):
            for _ in range(2):
                assert equal(compiled(x()), expected)
                assert equal(model(x()), expected)
        assert equal(compiled(x()), expected)
        double(model)
        assert equal(compiled(x()), model(x()))
    torch._dynamo.reset()


def test_distributed_in_the_block(model, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with torch.no_grad():
            expected = model(x())
        parallel = DistributedDataParallel(copy.deepcopy(model))
        parallel.eval()
        with torch.no_grad(), qnn.frozen(parallel):
            for _ in range(2):
                assert equal(parallel(x()), expected)
        assert nothing_kept(parallel)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("seconds", [0.3, pytest.param(1.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ask", [False, True])
def test_threads(model, ask, seconds):
    """Forwards side by side in the block, and one that asks for grids and integers."""
    errors, stop, interval = [], threading.Event(), sys.getswitchinterval()
    with torch.no_grad():
        expected = model(x())

    def forward():
        with torch.no_grad():
            while not stop.is_set():
                try:
                    assert equal(model(x()), expected)
                except Exception as error:
                    errors.append(repr(error))
                    return

    def asking():
        while not stop.is_set():
            try:
                model[1].int_weight()
                model[0].act_quant.grid(x())
            except Exception as error:
                errors.append(repr(error))
                return

    sys.setswitchinterval(1e-6)
    try:
        with qnn.frozen(model):
            threads = [threading.Thread(target=each) for each in (forward, forward, *([asking] if ask else []))]
            for each in threads:
                each.start()
            stop.wait(seconds)
            stop.set()
            for each in threads:
                each.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert nothing_kept(model)


def test_overlapping_blocks(model):
    """Blocks of two threads need not end in the order in which they began."""
    one, other = qnn.frozen(model), qnn.frozen(model)
    with torch.no_grad():
        one.__enter__()
        other.__enter__()
        model(x())
        one.__exit__(None, None, None)
        assert model[1]._kept
        other.__exit__(None, None, None)
        assert nothing_kept(model)
        double(model)
        assert equal(model(x()), copy.deepcopy(model)(x()))


def test_a_block_that_ends_while_somebody_asks(model):
    """What puts the record of an ended block back revives nothing."""
    layer = model[1]
    with torch.no_grad():
        block = qnn.frozen(model)
        block.__enter__()
        model(x())
        with layer._asked(layer.weight_quant):
            block.__exit__(None, None, None)
        double(model)
        assert equal(model(x()), copy.deepcopy(model)(x()))


def test_another_type_in_the_block(model):
    with torch.no_grad(), qnn.frozen(model):
        model(x())
        model.double()
        assert equal(model(x().double()), copy.deepcopy(model)(x().double()))


def test_a_float_model_is_left_alone():
    model = nn.Sequential(nn.Linear(2, 2))
    with qnn.frozen(model) as same:
        assert same is model


def test_a_kind_of_the_users_own():
    """What a layer keeps of it is kept like any other; the module itself is asked only once."""
    asked = []

    class Signs(TensorQuant):
        def _quantize(self, weight, *context):
            asked.append(1)
            return quant._quantize(weight)

        def scheme(self):
            return "signs"

    model = qnn.QuantLinear(2, 2, bias=False).eval()
    quant = model.weight_quant
    model.weight_quant = Signs()
    with torch.no_grad():
        expected = model(torch.eye(2))
        del asked[:]
        with qnn.frozen(model):
            assert all(torch.equal(model(torch.eye(2)), expected) for _ in range(3))
    assert asked == [1]
