"""The base of activation layers."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..qcore import QuantizerError, QuantTensor, TensorQuant, values_of
from .slots import Described, QuantLayer, fill_slot

__all__ = ["ActivationLayer"]


class ActivationLayer(QuantLayer):
    """What quantized activation layers share; a subclass applies a function, the base quantizes its result.

    Keyword arguments of every such layer, besides torch's own:

    Args:
        act_quant: quantizer of the result, or None.
        input_quant: quantizer of the input, or None.
        return_quant_tensor: return a `QuantTensor` that carries the result's grid.
        device: of the quantizer's state.
        dtype: of the quantizer's state.
        **overrides: settings of ``act_quant``, without a prefix: ``bit_width=4``; those of ``input_quant`` with one:
            ``input_bit_width=4``.

    Attributes:
        act_quant, input_quant: the resolved modules, or None.

    Raises:
        QuantizerError: in the constructor, for a keyword or setting that nothing uses, or an impossible one.

    Example:
        >>> from bitwright.nn import QuantReLU
        >>> from bitwright.quantizers import Uint8Act
        >>> layer = QuantReLU(act_quant=Uint8Act, bit_width=4, scale=0.5, return_quant_tensor=True)
        >>> out = layer(torch.tensor([-1.0, 1.2, 99.0]))
        >>> out.int(), out.scale, out.bit_width
        (tensor([ 0,  2, 15], dtype=torch.int8), tensor(0.5000), 4)
    """

    act_quant: TensorQuant | None
    input_quant: TensorQuant | None
    return_quant_tensor: bool

    def _attach(
        self,
        act_quant: Any,
        input_quant: Any,
        return_quant_tensor: bool,
        device: Any,
        dtype: torch.dtype | None,
        overrides: dict[str, Any],
    ) -> None:
        """Resolve the slots; called by constructors."""
        self.return_quant_tensor = return_quant_tensor
        self._given = {"device": device, "dtype": dtype}
        self._fill({"act": act_quant, "input": input_quant}, overrides, self._given)
        self._built = True

    prefixes: ClassVar[dict[str, str]] = {"act": "", "input": "input_"}

    def _provided(self, slot: str) -> dict[str, Any]:
        return dict(self._given)

    def _fill(self, slots: dict[str, Any], overrides: dict[str, Any], provided: dict[str, Any]) -> None:
        """Resolve the slots one by one, with all the checks."""
        act_quant, input_quant = slots["act"], slots["input"]
        inputs: dict[str, Any] = {}
        for keyword, item in overrides.items():
            prefix, _, rest = keyword.partition("_")
            if prefix == "input" and rest:
                if input_quant is None:
                    raise QuantizerError(
                        f"{Described(self)}: {keyword}={item!r} is given, but input_quant is None. Write "
                        f"input_quant=Int8Act too, or leave {keyword} out."
                    )
                inputs[rest] = item
                continue
            if prefix in ("weight", "bias", "act", "output") and rest:
                what = "has no weight or bias, and its" if prefix in ("weight", "bias") else "has one set of keywords:"
                rest = "act_quant" if rest == "quant" else rest
                raise QuantizerError(
                    f"{Described(self)}: {keyword}={item!r} is for no quantizer of this layer. An activation layer "
                    f"{what} settings take no prefix. Did you mean {rest}={item!r}?"
                )
            if act_quant is None:
                raise QuantizerError(
                    f"{Described(self)}: {keyword}={item!r} is given, but act_quant is None. Write act_quant=Int8Act "
                    f"too, or leave {keyword} out."
                )
        own = {keyword: item for keyword, item in overrides.items() if not keyword.startswith("input_")}
        self.act_quant = fill_slot(self, "act", act_quant, own, "", provided)
        self.input_quant = fill_slot(self, "input", input_quant, inputs, "input_", provided)
        if self.return_quant_tensor and self.act_quant is None and self.input_quant is not None:
            raise QuantizerError(
                f"{Described(self)}: return_quant_tensor=True needs act_quant, which is None. Write act_quant=Int8Act."
            )

    def _function(self, x: Tensor) -> Tensor:
        """What the layer computes before it quantizes."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """The quantized result, of the input's shape; a `QuantTensor` with ``return_quant_tensor=True``."""
        x = input
        if self.input_quant is not None:
            x = self.input_quant(values_of(x))
        if self.act_quant is None:
            return self._function(x)
        values = values_of(x)
        if values is not x and getattr(self, "inplace", False):
            values = values.clone()  # a function in place must not write into a QuantTensor behind its back
        out, grid = self._quantized(values, self.act_quant)
        if grid is None or not self.return_quant_tensor or torch.compiler.is_exporting():
            return out
        return QuantTensor.wrap(out, grid)

    def _quantized(self, x: Tensor, quant: TensorQuant) -> Any:
        return quant.quantize(self._function(x))

    def extra_repr(self) -> str:
        extra = super().extra_repr()
        flag = "return_quant_tensor=True" if self.return_quant_tensor else ""
        return ", ".join(each for each in (extra, flag) if each)
