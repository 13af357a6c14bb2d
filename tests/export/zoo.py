"""Models that hold many layers at once, so that one export tests them all."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.quantizers import Int32Bias

BATCH, CHANNELS, SIZE = 2, 4, 6


class WeightZoo(nn.Module):
    """Every layer with a weight: on quantized inputs, with a float, a products-scaled and an own-scaled bias in turn."""

    def __init__(self, act: Any, weight: dict[str, Any], biases: tuple[Any, ...] = (None, Int32Bias)) -> None:
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
        self.entry = qnn.QuantIdentity(act_quant=act, return_quant_tensor=True)
        self.layers = nn.ModuleList()
        for number, (kind, shape) in enumerate(kinds):
            self.layers.append(kind(*shape, bias=True, bias_quant=biases[number % len(biases)], **weight))
            self.layers.append(kind(*shape, bias=True, bias_quant=biases[(number + 1) % len(biases)], **weight))
        self.exits = nn.ModuleList(qnn.QuantIdentity(act_quant=act) for _ in self.layers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.entry(x)
        views = (x.flatten(2), x, x.unsqueeze(2), x.flatten(2), x, x.unsqueeze(2), x.flatten(1), x.flatten(1, 2))
        outputs: list[Tensor] = []
        for number, (layer, out) in enumerate(zip(self.layers, self.exits, strict=True)):
            y = layer(views[number // 2])
            outputs.append(out(y) if number % 2 else y)
        return tuple(outputs)


class ActivationZoo(nn.Module):
    """Every activation layer, and what networks do between them."""

    def __init__(self, act: Any, positive: Any = None) -> None:
        super().__init__()
        positive = positive or act
        self.entry = qnn.QuantIdentity(act_quant=act, return_quant_tensor=True)
        self.conv = qnn.QuantConv2d(CHANNELS, CHANNELS, 3, padding=1, bias=True)
        kinds = ["LeakyReLU", "Tanh", "HardTanh", "HardSwish", "SiLU", "GELU"]
        self.layers = nn.ModuleList(getattr(qnn, f"Quant{kind}")(act_quant=act) for kind in kinds)
        self.layers.extend(
            [
                qnn.QuantReLU(act_quant=positive),
                qnn.QuantReLU6(act_quant=positive),
                qnn.QuantSigmoid(act_quant=positive),
                qnn.QuantSoftmax(1, act_quant=positive),
            ]
        )
        self.again = nn.ModuleList(qnn.QuantIdentity(act_quant=act) for _ in range(8))
        self.plain = nn.Conv2d(CHANNELS, 3, 3)
        self.head = nn.Linear(CHANNELS, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.entry(x)
        y = self.conv(x)
        outputs = [layer(y) for layer in self.layers]
        quantized = [layer(x) for layer in self.layers]  # the same modules again: other codes, shared grids
        add, cat, mean, pool, twice, plain, head, mul = self.again
        outputs.append(add(quantized[0] + quantized[1]))
        outputs.append(cat(torch.cat([quantized[2], quantized[3]], 1)))
        outputs.append(mean(quantized[4].mean((2, 3))))
        outputs.append(pool(F.avg_pool2d(quantized[5], 2)))
        outputs.append(twice(F.max_pool2d(quantized[6], 2)))
        outputs.append(plain(self.plain(quantized[7])))
        outputs.append(head(self.head(F.adaptive_avg_pool2d(quantized[8], 1).flatten(1))))
        outputs.append(mul(quantized[0] * quantized[8]))
        outputs.append(F.interpolate(quantized[9], scale_factor=2.0).transpose(1, 2))
        return tuple(outputs)


def example(batch: int = BATCH) -> Tensor:
    """One input of the zoos."""
    return torch.randn(batch, CHANNELS, SIZE, SIZE)


def trained(model: nn.Module, *args: Any) -> nn.Module:
    """A model whose activation quantizers have seen data."""
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(*args)
    return model.eval()
