"""The network whose exported files are timed."""

import pytest
import torch

pytest.importorskip("onnxruntime")

from benchmarks.deployed import Vgg, fold_batch_norm


def test_folding_batch_norm_changes_nothing():
    torch.manual_seed(0)
    norms, folded = Vgg(quantized=False, folded=False), Vgg(quantized=False, folded=True)
    with torch.no_grad():
        for norm in norms.norms:
            norm.weight.uniform_(0.5, 2.0)
            norm.bias.uniform_(-0.5, 0.5)
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 2.0)
    folded.load_state_dict(fold_batch_norm(norms))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = norms.eval()(images)
        # of eight layers of float32 sums in another order
        torch.testing.assert_close(folded.eval()(images), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("folded", [False, True])
def test_quantized_networks_take_the_float_state(folded):
    """Strictly; only the folded one has integer biases, and none has BatchNorm beside them."""
    state = Vgg(quantized=False, folded=folded).state_dict()
    quantized = Vgg(quantized=True, folded=folded)
    quantized.load_state_dict(state)
    kinds = {type(module).__name__ for module in quantized.modules()}
    assert ("BatchNorm2d" in kinds, "BiasQuant" in kinds) == (not folded, folded)
