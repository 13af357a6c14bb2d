"""The networks whose exported files are timed, and the table."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("onnxruntime")

from benchmarks import runtime
from benchmarks.deployed import FAST, NETWORKS, W4, Deployed, Vgg, Way, by_rules, fold_batch_norm
from bitwright.export import VerificationReport, VerificationRow


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


def file(title, largest, differences, apart):
    """A file of 2 million codes."""
    act = VerificationRow("act", "activation", "on", 2_000_000, differences, largest=largest)
    output = VerificationRow("y", "output", "plain", 10, int(apart > 0))
    return runtime.File(Way(title), Path(), VerificationReport([act, output]), apart, 3)


def test_rows_are_those_of_a_table():
    files = [file("float", 0, 0, 0.0), file("W8A8", 1, 12, 0.003), file("W8", 0, 0, 0.25)]
    assert list(runtime.rows("VGG", files, [[0.002, 0.001, 0.004], [0.0015, 0.0012, 0.003]], 4)) == [
        "| VGG, float | 2 ms | 1.5 ms | 0 | 0.0e+00 | 3 of 4 |",
        "| ... W8A8 | 0.50 | 0.80 | 12 of 2 million | 3.0e-03 | 3 of 4 |",
        "| ... W8 | 2.00 | 2.00 | outputs alone | 2.5e-01 | 3 of 4 |",
    ]


def test_a_network_is_exported_compared_and_timed(monkeypatch, capsys):
    ways = (Way("float"), Way("W4", partial(by_rules, **W4)), Way("W4, fast", partial(by_rules, **W4), FAST))
    tiny = Deployed("tiny", (32,), lambda: nn.Sequential(nn.Linear(32, 4)), ways)
    monkeypatch.setitem(NETWORKS, "tiny", tiny)
    assert runtime.main(["tiny", "--rounds", "1", "--samples", "2", "--threads", "1"]) == 0
    head, line, *found = capsys.readouterr().out.splitlines()
    assert head == "| file | 1 thread | differences | outputs off by, of their range | same top class |"
    assert line == "| --- | --- | --- | --- | --- |"
    assert [row.split(" | ")[0] for row in found] == ["| tiny, float", "| ... W4", "| ... W4, fast"]
    assert [row.split(" | ")[2] for row in found] == ["0", "0", "outputs alone"]
    with pytest.raises(SystemExit):
        runtime.main(["huge"])
    assert "there is no network 'huge', but vgg, resnet," in capsys.readouterr().err
