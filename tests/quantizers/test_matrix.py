"""Every shipped quantizer trains, compiles, is saved and copied: the cells of the table in docs/formats.md."""

import copy
import pickle
import re

import pytest
import torch

from tests.quantizers.matrix import INPUTS, OUTPUTS, expected, exports, layer, listed, role, table
from tests.quantizers.shipped import COMPLETE

pytestmark = pytest.mark.filterwarnings("ignore:.* is clipped:UserWarning")  # a bias of 8 bits may be
every = pytest.mark.parametrize("quantizer", COMPLETE.values(), ids=repr)
FAMILIES = {re.sub(r"(Int|Uint)\d+", r"\1", name): each for name, each in COMPLETE.items()}  # one for all bit widths
families = pytest.mark.parametrize("quantizer", FAMILIES.values(), ids=repr)
X = torch.randn(8, INPUTS, generator=torch.Generator().manual_seed(0))
TARGET = X[:, :OUTPUTS].abs()
QUICK = {  # one of each way to compute; all are compiled among the slow tests
    "Fp8e4m3WeightPerTensor",
    "Int8DynamicActPerToken",
    "MXFloat4e2m1Weight",
    "NVFloat4Act",
}
QUICKLY = [
    pytest.param(each, marks=[] if name in QUICK else pytest.mark.slow, id=name) for name, each in COMPLETE.items()
]

QUICK_ROWS = {
    ("binary", "per channel", "float"),
    ("e4m3fn", "per tensor", "float"),
    ("nf4", "groups of 64", "float"),
}
ROWS = [
    pytest.param(cells, marks=[] if key in QUICK_ROWS else pytest.mark.slow, id=", ".join(key))
    for key, cells in table().items()
]


def losses(module, steps):
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (module(X) - TARGET).square().mean()
        loss.backward()
        optimizer.step()
        yield loss.item()


@every
def test_trains(quantizer):
    first, *later = losses(layer(quantizer), 8)
    assert min(later) < first


@families
def test_saved_and_copied(quantizer):
    one = layer(quantizer)
    other = layer(quantizer)
    with torch.no_grad():
        other.weight.add_(1)
    other.load_state_dict(one.state_dict())
    one.eval()
    other.eval()
    torch.manual_seed(0)
    before = one(X)
    for each in (other, copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        torch.manual_seed(0)
        assert torch.equal(each(X), before)
    plain = torch.nn.Linear(INPUTS, OUTPUTS, bias=one.bias is not None)
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other.weight, plain.weight)


@families
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(quantizer, dtype):
    module = layer(quantizer).to(dtype)
    y = module(X.to(dtype))
    y.sum().backward()
    assert y.dtype == module.weight.grad.dtype == dtype
    assert y.isfinite().all()
    assert module.weight.grad.isfinite().all()


@families
def test_nothing_and_zeros(quantizer):
    module = layer(quantizer).eval()
    for x in (torch.zeros(0, INPUTS), torch.zeros(2, INPUTS)):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        y.sum().backward()
        assert y.isfinite().all()
        assert leaf.grad.isfinite().all()
    with torch.no_grad():
        module.weight.zero_()
    assert module(X).isfinite().all()


@pytest.mark.parametrize("quantizer", QUICKLY)
def test_compiles(quantizer):
    torch.compiler.reset()
    module = layer(quantizer)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = {}
    for call in (module, compiled):
        leaf = X.clone().requires_grad_()
        torch.manual_seed(0)
        y = call(leaf)
        found[call] = (y, *torch.autograd.grad(y.square().mean(), [module.weight, leaf]))
    assert torch.equal(found[module][0], found[compiled][0])
    for eager, gradient in zip(found[module][1:], found[compiled][1:], strict=True):
        torch.testing.assert_close(gradient, eager, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cells", ROWS)
def test_exports(cells):
    """Every file agrees with its model, with the runtime's optimizations off and on, and is what the table says."""
    pytest.importorskip("onnxruntime")
    weights, acts, _, _, *says = cells
    assert says == exports(listed(weights), listed(acts))


def test_table_lists_every_format():
    """Where it doesn't: ``python -m tests.quantizers.matrix`` writes it anew."""
    assert {key: cells[:4] for key, cells in table().items()} == expected()


def test_every_role_is_known():
    assert {role(each) for each in COMPLETE.values()} <= {"weight", "activation", "bias", "gradient"}
