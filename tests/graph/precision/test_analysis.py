"""sensitivity: scores by hand, what it takes and refuses, and a model that stays as it is."""

import copy
import json
import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import GraphError, sensitivity
from bitwright.quantizers import Int8Act, Int8WeightPerTensor, Int32Bias, NF4Weight

X = torch.tensor([[0.0, 1.0], [1.0, 0.0]])


def one():
    """A layer with weights 1 and 0.4: 1 and 0 in two bits."""
    model = nn.Sequential(qnn.QuantLinear(2, 1, bias=False, weight_quant=Int8WeightPerTensor))
    model[0].weight.data = torch.tensor([[1.0, 0.4]])
    return model


def two():
    torch.manual_seed(0)
    return nn.Sequential(
        qnn.QuantLinear(4, 6, input_quant=Int8Act, bias_quant=Int32Bias, return_quant_tensor=True),
        nn.BatchNorm1d(6),
        nn.Dropout(),
        qnn.QuantLinear(6, 3),
    )


@pytest.mark.parametrize(
    ("score", "damage", "shown"),
    [
        ("sqnr", 0.16 / 1.16, 8.6034),
        ("fisher", 0.16, 0.16),
        ("hessian", 0.16, 0.16),  # the trace is that of x x', 2, for 2 weights
        (lambda model: 7 + model(X).sum(), -0.4, 8.0),
    ],
)
def test_scores_by_hand(score, damage, shown):
    found = sensitivity(one(), X, [2], score=score)["0", 2]
    assert (found.damage, found.score) == (pytest.approx(damage, rel=1e-5), pytest.approx(shown, rel=1e-4))


def test_divergence_by_hand():
    """Logits (1, 0.4) become (1, 0)."""
    model = nn.Sequential(qnn.QuantLinear(1, 2, bias=False, weight_quant=Int8WeightPerTensor))
    model[0].weight.data = torch.tensor([[1.0], [0.4]])
    p, q = torch.tensor([1.0, 0.4]).softmax(0), torch.tensor([1.0, 0.0]).softmax(0)
    found = sensitivity(model, torch.ones(3, 1), [2], score="kl")["0", 2]
    assert found.damage == found.score == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)


@pytest.mark.parametrize("score", ["sqnr", "kl", "fisher", "hessian"])
def test_layers_are_in_order_and_suffer_from_fewer_bits(score):
    data = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    table = sensitivity(two(), list(data.split(20)), [8, 5, 2], score=score)
    assert (table.layers, table.settings) == (("0", "3"), ("8", "5", "2"))
    assert [(each.path, each.setting) for each in table][:4] == [("0", "8"), ("0", "5"), ("0", "2"), ("3", "8")]
    assert all(0 <= a.damage < b.damage < c.damage for a, b, c in map(table.of, table.layers))


def test_batches_weigh_by_their_size():
    data = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    for score in ("sqnr", "kl"):
        whole, split = (sensitivity(two(), each, [3], score=score)["0", 3] for each in (data, list(data.split(20))))
        assert split.damage == pytest.approx(whole.damage, rel=1e-4), score


def state(model):
    """Everything that could change, as things to compare."""
    parts = [(path, part, type(part), part.training, set(vars(part))) for path, part in model.named_modules()]
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    grads = [(each.requires_grad, each.grad) for each in model.parameters()]
    return parts, hooks, grads, torch.get_rng_state().tolist()


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("score", ["sqnr", "fisher", "hessian", "measure"])
def test_the_model_stays_as_it_is(score, failing):
    model = two().train()
    model[3].weight.requires_grad_(False)
    tensors, before = copy.deepcopy(model.state_dict()), state(model)
    batches = [torch.randn(8, 4, generator=torch.Generator().manual_seed(1)), torch.randn(8, 5) if failing else None]
    before = state(model)

    def measure(model):
        assert not model.training
        assert model[3].weight_quant.intercept is not None
        return float(model(batches[0]).sum()) + (float(model(batches[1]).sum()) if failing else 0.0)

    def call():
        data = batches[0] if score == "measure" else [each for each in batches if each is not None]
        sensitivity(model, data, [2, 4], score=measure if score == "measure" else score, gradients=True)

    if failing:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            call()
    else:
        call()
    assert all(
        torch.equal(one, other) for one, other in zip(tensors.values(), model.state_dict().values(), strict=True)
    )
    assert state(model) == before
    assert all(part.intercept is None for part in qnn.quantizers_of(model).values())


def test_settings_of_any_kind():
    data = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    settings = {"nf4": {"weight_quant": NF4Weight}, "a2": {"input_bit_width": 2}, 4: 4, "float": None}
    table = sensitivity(two(), data, settings, layers="0")
    assert [each.bits for each in table] == [4.0, 8.0, 4.0, 32.0]
    assert table["0", "a2"].score < 15 < table["0", "nf4"].score < table["0", "float"].score
    assert table["0", "float"].rule is None
    given = {"weight_quant": Int8WeightPerTensor, "input_quant": Int8Act, "bias_quant": Int32Bias}
    given |= {"return_quant_tensor": True}
    assert table["0", "a2"].rule == {**given, "input_quant": Int8Act(bit_width=2)}
    assert table["0", 4].rule == {**given, "weight_quant": Int8WeightPerTensor(bit_width=4)}
    assert table.declared == {"0": given, "3": {"weight_quant": Int8WeightPerTensor}}


def test_losses_see_labels():
    data = [(X, torch.tensor([[2.0], [3.0]]))]
    found = sensitivity(one(), data, [2], score="fisher", loss=lambda out, batch: (out * batch[1]).sum())["0", 2]
    assert found.damage == pytest.approx((0.4 * 2) ** 2)


def test_what_counts_of_the_outputs():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = one()[0]

        def forward(self, x):
            return {"logits": self.fc(x), "input": 1e6 * x}

    found = sensitivity(Named(), {"x": X}, [2], outputs=lambda result: result["logits"])["fc", 2]
    assert found.damage == pytest.approx(0.16 / 1.16)
    assert sensitivity(Named(), {"x": X}, [2])["fc", 2].damage == pytest.approx(0.16 / (2e12 + 1.16))


def test_it_prints_and_is_data():
    table = sensitivity(one(), X, [2, 8], gradients=True)
    assert str(table) == "\n".join(
        [
            "Sequential: SQNR of the outputs in dB, with one layer quantized",
            "layer  weights    2     8  gradient 2  gradient 8",
            "0            2  8.6  56.7        11.0        59.1",
        ]
    )
    assert json.loads(json.dumps(table.as_dict()))["candidates"][0]["rule"] == {
        "weight_quant": "Int8WeightPerTensor(bit_width=2)"
    }


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = one()[0], one()[0]

    def forward(self, x):
        return self.used(x)


FLOAT = nn.Sequential(nn.Linear(2, 1))
WRITE = 'Write bit widths of weights, [2, 4, 8], or named settings, {"int4": dict(weight_bit_width=4), "float": None}.'
LOSS = (
    "sensitivity: loss must return a tensor of one number that comes from the model's outputs, such as "
    "loss=lambda output, batch: F.cross_entropy(output, batch[1])."
)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (5, {}, "sensitivity: 5 is not a model. Pass a torch.nn.Module, such as qnn.QuantLinear(8, 4)."),
        (
            FLOAT,
            {},
            "sensitivity: this Sequential has no layer with a quantized weight. Pass a quantized model: "
            "sensitivity(quantize(model, W8), data, [2, 4, 8]).",
        ),
        (one(), {"widths": 4}, f"sensitivity: widths=4 is not possible. {WRITE}"),
        (one(), {"widths": []}, f"sensitivity: there are no widths. {WRITE}"),
        (one(), {"widths": [4.0]}, f"sensitivity: 4.0 among the widths is not possible. {WRITE}"),
        (one(), {"widths": [4, 4]}, "sensitivity: the widths name '4' twice. Leave one of them out."),
        (one(), {"widths": {"a": "b"}}, f"sensitivity: 'a' is 'b', which is no setting. {WRITE}"),
        (
            one(),
            {"widths": {"a": {"context_bit_width": 4}}},
            "sensitivity: 0 (QuantLinear) has no slot for anything in the setting 'a' (context_bit_width). Name what "
            "the layer has, or leave it out of layers=.",
        ),
        (
            one(),
            {"widths": {"a": {"weight_bit_width": 4, "gate_bit_width": 4}}},
            "sensitivity: no layer has a slot for gate_bit_width, which the setting 'a' names. Leave it out, or write "
            "it as quantize would take it.",
        ),
        (
            one(),
            {"widths": {"a": {"input_bit_width": 4}}},
            "sensitivity: 0, by the setting 'a': QuantLinear(in_features=2, out_features=1, bias=False): "
            "input_bit_width=4 is given, but input_quant is None. Write input_quant=Int8Act too, or leave "
            "input_bit_width out.",
        ),
        (
            one(),
            {"score": "snr"},
            "sensitivity: score='snr' is not possible: expected one of 'sqnr', 'kl', 'fisher', 'hessian', or a "
            "function that measures a model, higher for worse.",
        ),
        (
            one(),
            {"score": lambda model: "bad"},
            "sensitivity: score= returned 'bad', which is no number. A measure takes the model and returns one, higher "
            "for worse: score=lambda model: 1 - accuracy(model).",
        ),
        (
            one(),
            {"score": lambda model: float("nan")},
            "sensitivity: the score of 0 under '2' is nan. Look for values that are not finite in the batches, in the "
            "weights, and in what score= returns.",
        ),
        (
            one(),
            {"score": "hessian", "widths": {"w2a8": {"weight_bit_width": 2, "input_quant": Int8Act}}},
            "sensitivity: the setting 'w2a8' quantizes the input of 0, and score='hessian' knows errors of weights "
            "only. Write score='fisher', or leave it out.",
        ),
        (
            one(),
            {"data": torch.zeros(1, 2)},
            "sensitivity: all outputs of the float model are 0, and score='sqnr' compares noise with them. Write "
            "score='fisher', or a measure of yours.",
        ),
        (
            one(),
            {"layers": "1*"},
            "sensitivity: '1*' among layers= matches no layer with a quantized weight. They are 0.",
        ),
        (
            one(),
            {"layers": []},
            'sensitivity: layers= names no layer. Leave it out for all of them, or write layers=["block1.*"].',
        ),
        (
            one(),
            {"loss": lambda out, batch: out.sum()},
            "sensitivity: loss= is given, and nothing is differentiated. Write score='fisher', score='hessian' or "
            "gradients=True too, or leave loss out.",
        ),
        (
            one(),
            {"loss": 5, "score": "fisher"},
            "sensitivity: loss=5 is not possible: expected a function of what the model returned and the batch, such "
            "as lambda output, batch: F.cross_entropy(output, batch[1]).",
        ),
        (one(), {"loss": lambda out, batch: 1.0, "score": "fisher"}, LOSS),
        (one(), {"loss": lambda out, batch: out, "score": "hessian"}, LOSS),
        (one(), {"gradients": 1}, "sensitivity: gradients=1 is not possible: expected True or False."),
        (
            one(),
            {"outputs": lambda result: "nothing"},
            "sensitivity: among the outputs (Tensor) is no tensor of floating numbers. Say which tensor counts: "
            "outputs=lambda result: result.logits.",
        ),
        (
            Branch(),
            {},
            "sensitivity: no batch reaches unused. Pass batches that do, or leave it out: layers=[...].",
        ),
    ],
)
def test_what_is_refused(model, arguments, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        sensitivity(model, **{"data": X, "widths": [2], **arguments})


def test_a_model_that_cannot_be_copied():
    model = one()
    model.lock = (each for each in ())
    message = (
        "sensitivity: Sequential can't be copied (TypeError: cannot pickle 'generator' object), and it works on a "
        "copy. Make it something that copy.deepcopy takes."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        sensitivity(model, X, [2])
