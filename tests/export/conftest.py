"""Models that hold many layers at once, so that one export tests them all."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.quantizers import Int8BiasOwnScale, Int8WeightPerTensor, Int32Bias

pytest.importorskip("onnxruntime")

BATCH, CHANNELS, SIZE = 2, 4, 6


class WeightZoo(nn.Module):
    """Every layer with a weight, twice; quantizers of activations and weights and kinds of bias take turns."""

    def __init__(
        self,
        acts: Sequence[Any],
        weights: Sequence[Any] = (Int8WeightPerTensor,),
        biases: Sequence[Any] = (None, Int32Bias, Int8BiasOwnScale),
    ) -> None:
        super().__init__()
        kinds = [
            (qnn.QuantConv1d, (CHANNELS, 6, 3)),
            (qnn.QuantConv2d, (CHANNELS, 6, 3)),
            (qnn.QuantConv3d, (CHANNELS, 6, (1, 3, 3))),
            (qnn.QuantConvTranspose1d, (CHANNELS, 6, 3)),
            (qnn.QuantConvTranspose2d, (CHANNELS, 6, 3)),
            (qnn.QuantConvTranspose3d, (CHANNELS, 6, (1, 3, 3))),
            (qnn.QuantLinear, (CHANNELS * SIZE * SIZE, 10)),
            (qnn.QuantLinear, (SIZE, 10)),
        ]
        self.entries = nn.ModuleList(qnn.QuantIdentity(act_quant=act, return_quant_tensor=True) for act in acts)
        self.layers = nn.ModuleList()
        self.exits = nn.ModuleList()
        for number in range(2 * len(kinds)):
            kind, shape = kinds[number // 2]
            act = acts[number // 2 % len(acts)]
            self.exits.append(qnn.QuantIdentity(act_quant=act) if number % 4 in (1, 2) else nn.Identity())
            weight, bias = weights[number % len(weights)], biases[number % len(biases)]
            self.layers.append(kind(*shape, bias=True, bias_quant=bias, weight_quant=weight))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        entries = [entry(x) for entry in self.entries]
        outputs: list[Tensor] = []
        for number, (layer, out) in enumerate(zip(self.layers, self.exits, strict=True)):
            # a kind's first layer has one quantizer of its input, its second the other
            x = entries[(number // 2 + number) % len(entries)]
            views = (x.flatten(2), x, x.unsqueeze(2), x.flatten(2), x, x.unsqueeze(2), x.flatten(1), x.flatten(1, 2))
            y = layer(views[number // 2])
            outputs.append(out(y))
        return tuple(outputs)


class ActivationZoo(nn.Module):
    """Every activation layer, and what networks do between them; the modules are used twice. Quantizers take turns."""

    def __init__(self, acts: Sequence[Any], positives: Sequence[Any] | None = None) -> None:
        super().__init__()
        turns, positive_turns = itertools.cycle(acts), itertools.cycle(positives or acts)

        def act() -> Any:
            next(positive_turns)
            return next(turns)

        def positive() -> Any:
            next(turns)
            return next(positive_turns)

        self.entry = qnn.QuantIdentity(act_quant=act(), return_quant_tensor=True)
        self.conv = qnn.QuantConv2d(CHANNELS, CHANNELS, 3, padding=1, bias=True)
        kinds = ["LeakyReLU", "Tanh", "HardTanh", "HardSwish", "SiLU", "GELU"]
        self.layers = nn.ModuleList(getattr(qnn, f"Quant{kind}")(act_quant=act()) for kind in kinds)
        self.layers.extend(
            [
                qnn.QuantReLU(act_quant=positive()),
                qnn.QuantReLU6(act_quant=positive()),
                qnn.QuantSigmoid(act_quant=positive()),
                qnn.QuantSoftmax(1, act_quant=positive()),
            ]
        )
        self.again = nn.ModuleList(qnn.QuantIdentity(act_quant=act()) for _ in range(8))
        self.plain = nn.Conv2d(CHANNELS, 3, 3)
        self.head = nn.Linear(CHANNELS, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.entry(x)
        y = self.conv(x)
        outputs = [layer(y) for layer in self.layers]
        leaky, tanh, hard, swish, silu, gelu, relu, relu6, sigmoid, softmax = (layer(x) for layer in self.layers)
        add, cat, mean, pool, twice, plain, head, mul = self.again
        outputs.append(add(leaky + tanh))
        outputs.append(cat(torch.cat([hard, swish], 2)))
        outputs.append(mean(silu.mean((2, 3))))
        outputs.append(pool(F.avg_pool2d(gelu, 2)))
        outputs.append(twice(F.max_pool2d(relu, 2)))
        outputs.append(self.plain(plain(relu6)))
        outputs.append(self.head(F.adaptive_avg_pool2d(head(sigmoid), 1).flatten(1)))
        outputs.append(mul(leaky * sigmoid))
        outputs.append(F.interpolate(softmax, scale_factor=2.0).transpose(1, 2))
        return tuple(outputs)


def example(batch: int = BATCH) -> Tensor:
    """Input of the zoos."""
    return torch.randn(batch, CHANNELS, SIZE, SIZE)


def trained(model: nn.Module, *args: Any) -> nn.Module:
    """A model whose quantizers have seen data, and are done with it.

    Two batches of different size: a range that is a sum of the very layer it serves puts many sums on exact ties.
    """
    model.train()
    with torch.no_grad():
        model(*args)
        model(*(0.83 * each for each in args))
    return finished(model).eval()


def finished(model: nn.Module) -> nn.Module:
    """A model whose calibration is over."""
    qnn.finish_calibration(model)
    return model


@pytest.fixture
def zoo() -> SimpleNamespace:
    """The zoos, and what they need."""
    return SimpleNamespace(
        WeightZoo=WeightZoo,
        ActivationZoo=ActivationZoo,
        example=example,
        trained=trained,
        finished=finished,
        batch=BATCH,
    )


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every test."""
    torch.manual_seed(0)
