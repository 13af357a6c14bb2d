"""A classifier with a fixed matrix of signs."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from ..qcore import QuantizerError, TensorQuant, path_of
from .layer import QuantLayer
from .slots import Described, QuantizerLike, Slot, checked_flag

__all__ = ["QuantHadamardClassifier", "hadamard"]


def hadamard(rows: int, columns: int) -> Tensor:
    """The first rows and columns of Sylvester's Hadamard matrices, which are corners of one another.

    Example:
        >>> hadamard(3, 4)
        tensor([[ 1.,  1.,  1.,  1.],
                [ 1., -1.,  1., -1.],
                [ 1.,  1., -1., -1.]])
    """
    common = torch.arange(rows).unsqueeze(1) & torch.arange(columns)  # an entry is -1 to the number of common bits
    for shift in (32, 16, 8, 4, 2, 1):
        common = common ^ (common >> shift)
    return 1.0 - 2.0 * (common & 1)


class QuantHadamardClassifier(QuantLayer):
    """A classifier that learns one number: ``-scale * H x / |x|``, with a Hadamard matrix H of 1 and -1; input (*, in).

    No weight is stored or trained, and products with a quantized input are sums and differences of its integers. Each
    sample is divided by its own length. Brevitas' ``HadamardClassifier``, whose checkpoints load, divides by the length
    of the whole batch: the classes it finds are the same. Hoffer, Hubara and Soudry, "Fix your classifier", ICLR 2018.

    Args:
        in_features: size of a sample.
        out_features: how many classes.
        fixed_scale: whether the scale stays what it is at first, ``1 / sqrt(out_features)``.
        device: of the scale.
        dtype: of the scale.
        input_quant: quantizer of the input, or None.
        output_quant: quantizer of the output, or None.
        return_quant_tensor: return a `QuantTensor`; needs ``output_quant``.
        **overrides: settings of these quantizers, with the prefix of the slot: ``input_bit_width=4``.

    Raises:
        QuantizerError: an unused or impossible setting; in forward, an input of another size.

    Example:
        >>> classifier = QuantHadamardClassifier(4, 2, fixed_scale=True)
        >>> classifier(torch.tensor([0.0, 3.0, 0.0, 4.0])) * 2**0.5
        tensor([-1.4000,  1.4000])
    """

    slots = (Slot("input"), Slot("output"))

    input_quant: TensorQuant | None
    output_quant: TensorQuant | None
    return_quant_tensor: bool
    scale: Tensor
    signs: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        fixed_scale: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        input_quant: QuantizerLike = None,
        output_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        **overrides: object,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.fixed_scale = checked_flag(self, "fixed_scale", fixed_scale)
        self.return_quant_tensor = checked_flag(self, "return_quant_tensor", return_quant_tensor)
        scale = torch.tensor(out_features**-0.5, device=device, dtype=dtype)
        if self.fixed_scale:
            self.register_buffer("scale", scale)
        else:
            self.scale = nn.Parameter(scale)
        signs = hadamard(out_features, in_features).to(device=device, dtype=scale.dtype)
        self.register_buffer("signs", signs, persistent=False)  # (out, in)
        self.fill_slots(input_quant=input_quant, output_quant=output_quant, **overrides)

    def _provided(self, slot: Slot) -> Mapping[str, Any]:
        return {"device": self.scale.device, "dtype": self.scale.dtype}

    def _check_slots(self) -> None:
        if self.return_quant_tensor and self.output_quant is None:
            raise QuantizerError(
                f"{Described(self)}: return_quant_tensor=True needs outputs that lie on a grid, and each sample is "
                "divided by its own length. Set output_quant=Int8Act to quantize the output."
            )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """Scores, (*, out); a `QuantTensor` with ``return_quant_tensor=True``."""
        if input.ndim == 0 or input.shape[-1] != self.in_features:
            raise QuantizerError(
                f"{path_of(self)}: the input has the shape {tuple(input.shape)}, and its last dimension should be "
                f"{self.in_features}."
            )
        x, _ = self.pass_through("input", input)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
        out = F.linear(x, self.signs) * -self.scale / length
        if self.output_quant is None:
            return out
        return self._leaving(*self.output_quant.quantize(out))

    @property
    def _title(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        fixed, flag = self.fixed_scale, self.return_quant_tensor
        extra = (", fixed_scale=True" if fixed else "") + (", return_quant_tensor=True" if flag else "")
        return f"in_features={self.in_features}, out_features={self.out_features}{extra}"
