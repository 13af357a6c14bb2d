"""Evaluation is that of the parameters as they are, whichever optimizer changed them, and however."""

import copy
import inspect

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.quantizers import Int8Act, Int8WeightPerChannelLearned, Int8WeightPerTensorLearned, Int32Bias

OPTIMIZERS = [
    each
    for name, each in sorted(vars(torch.optim).items())
    if inspect.isclass(each) and issubclass(each, torch.optim.Optimizer) and name not in ("Optimizer", "SparseAdam")
]
WAYS = [
    pytest.param(each, {way: True} if way else {}, id=f"{each.__name__}-{way or 'plain'}")
    for each in OPTIMIZERS
    for way in ("", "foreach", "fused")
    if not way or way in inspect.signature(each).parameters
]


def make():
    return nn.Sequential(
        qnn.QuantIdentity(act_quant=Int8Act(scaling="learned"), return_quant_tensor=True),
        qnn.QuantLinear(8, 16, weight_quant=Int8WeightPerTensorLearned(bit_width=4), bias_quant=Int32Bias),
        qnn.QuantReLU(bit_width=4, calibration_steps=1),
        qnn.QuantLinear(16, 4, weight_quant=Int8WeightPerChannelLearned(bit_width=4)),
    )


def made(optimizer, options, model):
    """An optimizer of the parameters that it takes."""
    parameters = [each for each in model.parameters() if optimizer.__name__ != "Muon" or each.ndim == 2]
    try:
        return optimizer(parameters, lr=0.05, **options)
    except RuntimeError as error:
        pytest.skip(str(error))


def test_every_optimizer_is_here():
    assert len(OPTIMIZERS) >= 13
    assert {torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.LBFGS} <= set(OPTIMIZERS)
    assert len(WAYS) > 2 * len(OPTIMIZERS)


@pytest.mark.parametrize(("optimizer", "options"), WAYS)
def test_train_and_evaluate_in_turn(optimizer, options):
    torch.manual_seed(0)
    model, x, y = make(), torch.randn(32, 8), torch.randn(32, 4)
    optimizer = made(optimizer, options, model)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    found = []
    for _ in range(3):
        model.train()
        for _ in range(2):
            closure()  # also the first one, which calibrates
            optimizer.step(closure if isinstance(optimizer, torch.optim.LBFGS) else None)
        model.eval()
        loaded = make()
        loaded.load_state_dict(model.state_dict())
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                out = model(x)
                assert torch.equal(out, copy.deepcopy(model)(x))
                assert torch.equal(out, loaded.eval()(x))
        found.append(out.detach())
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
    assert all(model[index].weight_quant.calibrated for index in (1, 3))
