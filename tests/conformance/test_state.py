"""What holds for the state of every layer and every quantizer: it goes round, resumes, and takes float checkpoints."""

import copy
import pickle
from io import BytesIO
from typing import Any

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.nn import calibrating, quantizers_of
from bitwright.qcore import StoredScaling, TensorQuant
from bitwright.quantizers import Int8Act
from tests.conformance.examples import (
    ACTS,
    BIASES,
    LAYERS,
    WEIGHTS,
    full,
    inputs_of,
    kinds,
    made,
    same,
    seeded,
    tensors_of,
    twin_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* is clipped:bitwright.qcore.BitwrightWarning")


def makers() -> Any:
    for name, layer in LAYERS.items():
        yield name, lambda layer=layer: made(layer)
        yield f"{name}, full", lambda layer=layer: made(layer, **full(layer))
    for name, quantizer in kinds(WEIGHTS).items():
        yield name, lambda quantizer=quantizer: made(qnn.QuantLinear, weight_quant=quantizer)
    for name, quantizer in kinds(ACTS).items():
        yield name, lambda quantizer=quantizer: made(qnn.QuantIdentity, act_quant=quantizer)
    for name, quantizer in BIASES.items():
        yield name, lambda quantizer=quantizer: made(qnn.QuantLinear, bias_quant=quantizer, input_quant=Int8Act)


EVERYTHING = dict(makers())


def saved(anything: Any, **keywords: Any) -> Any:
    """What torch.load makes of what torch.save has written."""
    buffer = BytesIO()
    torch.save(anything, buffer)
    buffer.seek(0)
    return torch.load(buffer, **keywords)


def measures(quantizer: TensorQuant) -> bool:
    """Whether it has a range that data tell."""
    return not quantizer.of_parameter and isinstance(getattr(quantizer, "scaling", None), StoredScaling)


@pytest.mark.parametrize("mode", ["evaluation", "calibrated"])
@pytest.mark.parametrize("name", EVERYTHING)
def test_state_goes_round(name, mode):
    module = EVERYTHING[name]()
    keys = list(module.state_dict())
    if mode == "calibrated" and not any(measures(each) for each in quantizers_of(module).values()):
        pytest.skip("nothing to calibrate")
    if mode == "calibrated":
        with calibrating(module):
            module(*inputs_of(module))
    else:
        with torch.no_grad():
            module(*inputs_of(module))
        module.eval()
    inputs = inputs_of(module, seed=1)
    assert list(module.state_dict()) == keys
    loaded = EVERYTHING[name]().train(module.training)
    loaded.load_state_dict(saved(module.state_dict(), weights_only=True), strict=True)
    copies = [loaded, copy.deepcopy(module), pickle.loads(pickle.dumps(module)), saved(module, weights_only=False)]
    assert [each.training for each in copies] == [module.training] * 4
    expected = module.eval()(*inputs)
    for each in copies:
        same(each.eval()(*inputs), expected)
        assert list(each.state_dict()) == keys
        assert repr(each) == repr(module)
        assert list(quantizers_of(each)) == list(quantizers_of(module))
        shared = {id(part) for part in each.modules()} & {id(part) for part in module.modules()}
        assert not shared
    for quant in (each for each in module.modules() if isinstance(each, TensorQuant)):
        assert pickle.loads(pickle.dumps(quant.quantizer)) == quant.quantizer


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_float_checkpoint_loads_strictly(name):
    module = EVERYTHING[name]()
    source = twin_of(type(module))
    if not isinstance(source, nn.Module):
        pytest.skip("nothing in torch is like it")
    with torch.no_grad():
        for each in source.parameters():
            each.mul_(1.5)
    module(*inputs_of(module))
    weights = {
        path: each for path, each in quantizers_of(module).items() if each.of_parameter and not each.follows_input
    }
    before = {path: copy.deepcopy(each) for path, each in weights.items()}
    module.load_state_dict(source.state_dict(), strict=True)
    for parameter, loaded in source.state_dict().items():
        assert torch.equal(module.state_dict()[parameter], loaded)
    fresh = EVERYTHING[name]()
    fresh.load_state_dict(source.state_dict(), strict=True)
    for path, quant in weights.items():  # learned scales start from the loaded weights
        assert same_state(quant, quantizers_of(fresh)[path]), path
        assert not list(quant.parameters()) or not same_state(quant, before[path]), path


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether two quantizers have the same parameters and buffers."""
    pairs = zip((*one.parameters(), *one.buffers()), (*other.parameters(), *other.buffers()), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("name", EVERYTHING)
def test_training_resumes_to_the_bit(name):
    module = EVERYTHING[name]()
    if not list(module.parameters()):
        pytest.skip("nothing to train")
    optimizer = torch.optim.Adam(module.parameters(), 0.01)

    def steps(model: Any, optimizer: torch.optim.Optimizer, seeds: range) -> list[float]:
        losses = []
        for seed in seeds:
            outs = tensors_of(seeded(model, *inputs_of(model, seed=seed)))
            loss = sum((each.square().mean() for each in outs if each.is_floating_point()), torch.zeros(()))
            optimizer.zero_grad()
            if loss.requires_grad:  # an activation alone has nothing to learn while it collects
                loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    steps(module, optimizer, range(2))
    file = saved([module.state_dict(), optimizer.state_dict()], weights_only=True)
    expected = steps(module, optimizer, range(2, 5))
    resumed = EVERYTHING[name]()
    restarted = torch.optim.Adam(resumed.parameters(), 0.01)
    resumed.load_state_dict(file[0])
    restarted.load_state_dict(file[1])
    assert steps(resumed, restarted, range(2, 5)) == expected


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_copy_in_another_dtype_has_the_same_keys(name):
    module = EVERYTHING[name]()
    module(*inputs_of(module))
    for dtype in (torch.float64, torch.bfloat16):
        other = copy.deepcopy(module).to(dtype)
        assert list(other.state_dict()) == list(module.state_dict())
        assert {each.dtype for each in other.parameters() if each.is_floating_point()} <= {dtype}
        assert all(torch.isfinite(each).all() for each in tensors_of(other(*inputs_of(module, dtype))))
