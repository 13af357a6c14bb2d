import copy
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import GraphError
from bitwright.graph.passes.reestimation import reestimate_batch_norms


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)
        self.fc, self.bn3 = nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x)) + x
        return self.bn3(self.fc(self.drop(x).mean((2, 3))))


def seeded(seed=0):
    torch.manual_seed(seed)
    return Residual().double()


def in_training(model, x):
    """Torch's own statistics, from one batch."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    model(x)
    return {name: each for name, each in model.named_buffers() if "running" in name}


def statistics(model):
    return {name: each for name, each in model.named_buffers() if "running" in name}


def in_evaluation(model, x):
    """Statistics of what BatchNorms read, from one batch."""
    model = copy.deepcopy(model).eval()
    found: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(lambda _, args, path=path: found.update([(path, args[0])]))
    with torch.no_grad():
        model(x)
    axes = {path: [dim for dim in range(read.ndim) if dim != 1] for path, read in found.items()}
    means = {f"{path}.running_mean": read.mean(axes[path]) for path, read in found.items()}
    return means | {f"{path}.running_var": read.var(axes[path]) for path, read in found.items()}


@given(st.integers(0, 99), st.lists(st.integers(1, 6), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 1))
def test_is_what_evaluation_reads_in_one_batch(seed, sizes):
    model = seeded(seed)
    x = torch.randn(sum(sizes), 2, 4, 4, dtype=torch.float64) * 3 + 100
    reestimate_batch_norms(model, list(x.split(sizes)))
    torch.testing.assert_close(statistics(model), in_evaluation(model, x), rtol=1e-9, atol=1e-9)


def test_of_many_samples_is_what_training_keeps():
    """Training normalizes by the biased variance: one part in 500 here."""
    model = seeded()
    x = torch.randn(500, 2, 2, 2, dtype=torch.float64)
    expected = in_training(model, x)
    reestimate_batch_norms(model, list(x.split(77)))
    torch.testing.assert_close(statistics(model), expected, rtol=5e-3, atol=1e-3)
    torch.testing.assert_close(model.bn1.running_var, expected["bn1.running_var"], rtol=1e-12, atol=1e-12)


def test_order_of_batches_does_not_matter():
    x = torch.randn(7, 2, 4, 4, dtype=torch.float64)
    one, other = seeded(), seeded()
    reestimate_batch_norms(one, [x[:5], x[5:]])
    reestimate_batch_norms(other, [x[5:], x[:5]])
    torch.testing.assert_close(statistics(one), statistics(other), rtol=1e-12, atol=1e-12)


def test_in_one_pass_first_norms_are_exact_and_a_single_batch_is():
    x = torch.randn(6, 2, 4, 4, dtype=torch.float64)
    model = seeded()
    expected = in_training(model, x)
    reestimate_batch_norms(model, x, one_pass=True)
    torch.testing.assert_close(statistics(model), expected, rtol=1e-12, atol=1e-12)
    reestimate_batch_norms(model, [x[:2], x[2:]], one_pass=True)
    torch.testing.assert_close(model.bn1.running_var, expected["bn1.running_var"], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model.bn3.running_var, expected["bn3.running_var"], rtol=1e-3)


def test_only_statistics_change():
    model = seeded().train()
    model.bn1.eval()
    before, flags = copy.deepcopy(model.state_dict()), [each.training for each in model.modules()]
    reestimate_batch_norms(model, torch.randn(3, 2, 4, 4, dtype=torch.float64))
    after = model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        f"bn{n}.{name}" for n in (1, 2, 3) for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert [each.training for each in model.modules()] == flags
    assert [model.bn1.momentum, model.bn3.momentum] == [0.1, None]
    assert not model.bn1._forward_pre_hooks


def test_quantized_model():
    """Statistics are those of the quantized model's own tensors."""
    torch.manual_seed(0)
    model = nn.Sequential(qnn.QuantConv2d(2, 3, 3, weight_bit_width=2), nn.BatchNorm2d(3), nn.ReLU())
    x = torch.randn(8, 2, 5, 5)
    with torch.no_grad():
        seen = model[0].eval()(x)
    reestimate_batch_norms(model, [x[:5], x[5:]])
    torch.testing.assert_close(model[1].running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, seen.var((0, 2, 3)))
    assert model[1].num_batches_tracked == 2


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.BatchNorm1d(2, track_running_stats=n != 2) for n in range(4))

    def forward(self, x):
        return self.c(self.b(self.b(self.a(x))))


def test_report():
    report = reestimate_batch_norms(Two(), torch.tensor([[1.0, -1.0], [3.0, -1.0]]))
    assert [(each.path, each.action, each.reason) for each in report] == [
        ("a", "measured", ""),
        ("b", "left", "it is called 2 times in a forward"),
        ("c", "left", "it keeps no running statistics"),
        ("d", "left", "no batch reaches it"),
    ]
    assert report["a"].figures["values"] == 2


def test_nothing_to_measure():
    message = "reestimate_batch_norms: nothing to measure. 0: it keeps no running statistics."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        reestimate_batch_norms(nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)), torch.ones(3, 2))
    message = "reestimate_batch_norms: nothing to measure. The model has no BatchNorm."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        reestimate_batch_norms(nn.Linear(1, 1), torch.ones(3, 1))


def refused(model, data, message):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        reestimate_batch_norms(model, data)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(each.training for each in model.modules())
    assert not any(each._forward_pre_hooks for each in model.modules())


def test_single_value():
    message = "reestimate_batch_norms: 1 sees a single value of each channel, which has no variance. Pass more data."
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    model.insert(1, nn.AdaptiveAvgPool2d(1))
    refused(model, torch.ones(1, 2, 3, 3), message.replace(" 1 sees", " 2 sees"))


def test_not_finite():
    message = "reestimate_batch_norms: what 0 reads is not finite. Look for NaN or infinity in the data and weights."
    refused(nn.Sequential(nn.BatchNorm1d(1)), [torch.ones(2, 1), torch.tensor([[float("inf")], [0.0]])], message)


def test_failure_in_the_second_batch_leaves_the_model():
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="running_mean should contain 3 elements"):
        reestimate_batch_norms(model, [torch.ones(4, 1), torch.ones(4, 3)])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_constant_channel():
    model = nn.BatchNorm1d(1)
    reestimate_batch_norms(model, torch.full((4, 1), 7.0))
    assert (model.running_mean.item(), model.running_var.item()) == (7.0, 0.0)
