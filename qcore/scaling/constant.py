"""Scales that are given."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.types import Device

from ..errors import QuantizerError, SettingError
from ..granularity import Granularity
from ..locate import path_of
from ..protocols import Levels
from ..tracing import is_tracing
from .magnitude import MagnitudeScaling, entries, finite
from .restriction import FloatScale

__all__ = ["ConstantScaling", "FixedScaling", "FixedZeroPoint"]

_FLOAT_SCALE = FloatScale()


class ConstantScaling(MagnitudeScaling):
    """A scale that is given and stays: ``scale=2**-7``, or from the range that it must cover.

    The constant is state: it is saved, and a file's constant replaces the one that was given.

    Args:
        number_format: the levels of the grid.
        scale: the scale itself: a number, or one for each index of ``axis``.
        max_value: with ``min_value``, the range to cover instead; the larger magnitude sets the scale.
        min_value: lower end of that range; by default ``-max_value``, or 0 where integers are unsigned.
        restriction: which scales are allowed.
        axis: the dimension of several scales.
        granularity: which values share one, where ``axis`` can't say it.

    Raises:
        SettingError: neither or both of scale and max_value, or numbers that are not positive and finite.

    Example:
        >>> from bitwright.qcore import IntRange
        >>> ConstantScaling(IntRange(8, signed=True), scale=2**-7)(torch.ones(3))
        tensor(0.0078)
    """

    dynamic = False
    measuring = False
    scale: Tensor

    def __init__(
        self,
        number_format: Levels,
        scale: object = None,
        max_value: float | None = None,
        min_value: float | None = None,
        restriction: FloatScale = _FLOAT_SCALE,
        min_scale: float = 1e-10,
        axis: int | None = None,
        granularity: Granularity | None = None,
        device: Device = None,
    ) -> None:
        super().__init__(number_format, restriction, min_scale, axis, granularity)
        if scale is None and max_value is None:
            raise SettingError("scale", None, "a positive number such as 2**-7", "Or give the range: max_value=1.0.")
        for name, bound in (("max_value", max_value), ("min_value", min_value)):
            if scale is not None and bound is not None:
                raise SettingError("scale", scale, f"a scale or a range, not both ({name}={bound})")
        if scale is not None:
            constant = _positive("scale", scale)
            allowed = restriction.restrict(constant)
            if not torch.equal(allowed, constant):
                remedy = f"Write scale={allowed.tolist()}."
                raise SettingError("scale", scale, f"a scale that {restriction!r} allows", remedy)
        else:
            reach = _reach(max_value, min_value)
            magnitude = _positive("max_value", reach)
            constant = self.scale_of(magnitude, magnitude).detach()
        if self.granularity.single and constant.numel() != 1:
            raise SettingError("scale", scale, "one number", "Say which dimension the numbers are for: axis=1.")
        self._given = constant.reshape(() if self.granularity.single else -1)
        self.register_buffer("scale", self._given.to(device or torch.get_default_device(), copy=True))

    def extra_repr(self) -> str:
        if self.scale.is_meta:
            return super().extra_repr()
        number = f"{self.scale.item():g}" if self.scale.numel() == 1 else f"{self.scale.numel()} numbers"
        return f"{number}, {super().extra_repr()}"

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the constant to what was given."""
        self.scale.copy_(self._given)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, object],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)
        if self.scale.is_meta and local_metadata.get("assign_to_params_buffers", False):
            self.scale = self._given.clone()  # a float checkpoint holds no constant

    def forward(self, x: Tensor) -> Tensor:
        """The constant, shaped for ``x``."""
        if self.scale.numel() != 1 and (asked := self.granularity.count(x.shape)) != self.scale.numel():
            raise QuantizerError(
                f"{path_of(self)}: the input has {entries(self.granularity, asked)}, and {self.scale.numel()} scales "
                "are given. Give one scale, or one for each entry."
            )
        graph = torch.compiler.is_compiling() or is_tracing()
        scale = self.scale if graph else self.scale.clone()  # a tensor's grid stays when a file's constant is loaded
        if scale.numel() == 1:
            return scale.reshape(() if self.granularity.single else [1] * x.ndim)
        return self.granularity.compact(scale, x.shape)


class FixedScaling(MagnitudeScaling):
    """The scales that a weight had at some time, kept whatever becomes of the weight: see `GridQuant.fix`.

    Args:
        scale: the scales, in the shape in which the granularity keeps them.
        number_format: the levels of the grid.
        granularity: which values share a scale.
        restriction: which scales are allowed.

    Attributes:
        fixed_scale: the scales; state.

    Example:
        >>> from bitwright.qcore import IntRange, PerTensor
        >>> FixedScaling(torch.tensor(0.5), IntRange(8, signed=True), PerTensor())(torch.ones(3))
        tensor(0.5000)
    """

    dynamic = False
    measuring = False
    fixed_scale: Tensor

    def __init__(
        self,
        scale: Tensor,
        number_format: Levels,
        granularity: Granularity,
        restriction: FloatScale = _FLOAT_SCALE,
    ) -> None:
        super().__init__(number_format, restriction, 1e-10, granularity=granularity)
        self.register_buffer("fixed_scale", scale.detach().clone())

    @property
    def scale(self) -> Tensor:
        """The same: what constant scales are called."""
        return self.fixed_scale

    def forward(self, x: Tensor) -> Tensor:
        """The scales, for the weight that they are for."""
        graph = torch.compiler.is_compiling() or is_tracing()
        return self.fixed_scale if graph else self.fixed_scale.clone()


class FixedZeroPoint(nn.Module):
    """The zero points that go with a `FixedScaling`.

    Args:
        zero_point: the zero points, shaped like the scales.
        whole: whether they are whole numbers.

    Attributes:
        fixed_zero_point: the zero points; state.

    Example:
        >>> FixedZeroPoint(torch.tensor(8.0))(torch.ones(3), torch.tensor(0.5))
        tensor(8.)
    """

    dynamic = False
    fixed_zero_point: Tensor

    def __init__(self, zero_point: Tensor, whole: bool = True) -> None:
        super().__init__()
        self.whole = whole
        self.register_buffer("fixed_zero_point", zero_point.detach().clone())

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """The zero points, for the weight that they are for."""
        return self.fixed_zero_point.to(scale.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.fixed_zero_point
        super()._apply(fn, recurse)
        if self.fixed_zero_point.itemsize < 4:  # zero points of 16 bits are none in half precision
            self.fixed_zero_point = before.to(self.fixed_zero_point.device)
        return self

    def __repr__(self) -> str:
        return "FixedZeroPoint()"


def _reach(max_value: object, min_value: object) -> float:
    """The larger magnitude of a range."""
    largest = finite("max_value", max_value, "a positive, finite number")
    if min_value is None:
        if largest <= 0:
            raise SettingError("max_value", max_value, "a positive, finite number")
        return largest
    smallest = finite("min_value", min_value)
    if largest <= smallest:
        raise SettingError("max_value", max_value, f"a number above min_value={min_value}")
    return max(abs(largest), abs(smallest))


def _positive(setting: str, number: object) -> Tensor:
    try:
        if isinstance(number, bool):
            raise TypeError
        found = torch.as_tensor(number, dtype=torch.float32, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise SettingError(setting, number, "a positive number such as 2**-7") from None
    if not bool(((found > 0) & found.isfinite()).all()):
        raise SettingError(setting, number, "a positive, finite number")
    return found
