"""Layers of other kinds than the networks have: sums, embeddings, pools, upsampling, norms, attention."""

import torch
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.quantizers import Int8Act, Int32Bias, Uint8Act


class Layers(nn.Module):
    """Side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = qnn.QuantEmbedding(16, 8, weight_bit_width=4)
        clipped = qnn.QuantIdentity(scaling="learned", max_value=1.0)  # Brevitas' QuantHardTanh
        self.acts = nn.ModuleList(
            [qnn.QuantSigmoid(), qnn.QuantHardSwish(act_quant=Uint8Act), clipped, qnn.QuantTanh()]
        )
        self.add = qnn.QuantAdd()
        self.identity = qnn.QuantIdentity(bit_width=6, return_quant_tensor=True)
        self.dropout = qnn.QuantDropout(0.5)
        self.pools = nn.ModuleList(
            [
                qnn.TruncAvgPool2d(2, bit_width=8, rounding="floor", return_quant_tensor=True),
                qnn.TruncAvgPool2d(2, bit_width=4, return_quant_tensor=True),
                qnn.TruncAdaptiveAvgPool2d(1, bit_width=5, return_quant_tensor=True),
                qnn.QuantMaxPool2d(2),
            ]
        )
        self.nearest = qnn.QuantUpsamplingNearest2d(scale_factor=2)
        on_its_grid = self.identity.act_quant
        self.bilinear = qnn.QuantUpsample(scale_factor=2, mode="bilinear", align_corners=False, act_quant=on_its_grid)
        self.scale = qnn.QuantScaleBias(2, weight_bit_width=6)
        self.attention = qnn.QuantMultiheadAttention(
            8, 2, bias_quant=Int32Bias, input_quant=Int8Act, context_quant=Int8Act
        )
        self.dot = qnn.QuantScaledDotProductAttention()

    def forward(self, x: Tensor) -> Tensor:
        """All results in one row."""
        whole = self.embedding((x.abs() * 5).long().clamp(max=15))
        found = [each(x) for each in self.acts] + [self.add(x, x.flip(1)), whole]
        image = self.dropout(self.identity(x.reshape(-1, 2, 2, 2)))
        found += [each(image) for each in self.pools] + [self.nearest(image), self.bilinear(image)]
        found += [self.scale(image)]
        steps = x[:, None]
        found += [self.attention(steps, steps, steps)[0], self.dot(x[None], x[None] * 0.5, x[None])]
        return torch.cat([each.reshape(-1) for each in found])
