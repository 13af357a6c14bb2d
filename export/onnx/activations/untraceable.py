"""Scales that follow the input and that ONNX has no operators for, named once an export has failed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ....qcore import GridQuant
from ...capture.record import Call, Recording
from ...errors import ExportError, with_causes
from ..dialects import Dialect
from ..tracing.trace import quiet

__all__ = ["naming_untraceable"]


@contextmanager
def naming_untraceable(recording: Recording, dialect: Dialect) -> Iterator[None]:
    """Name the quantizers whose scale torch.onnx.export can't write, where an export fails inside the block.

    Args:
        recording: the calls of all quantizers.
        dialect: the dialect, which the error names.

    Raises:
        ExportError: in the place of torch's error, with one line for each quantizer.
    """
    try:
        yield
    except ExportError:
        raise
    except Exception:  # torch's, or the model's own
        causes = _untraceable(recording)
        if not causes:
            raise
        count = f"{len(causes)} quantizer{'s' * (len(causes) > 1)}"
        raise ExportError(with_causes(f"{dialect.name} can't express {count} of this model:", causes)) from None


def _untraceable(recording: Recording) -> list[str]:
    following = {call.path: call for call in recording if call.follows_input and not call.stored}
    return [
        f"{path}: its scale follows the input, and torch.onnx.export has no operators for how {_scaling(call)} works "
        "it out. Write statistic='abs_max', or scaling='calibrated' and run some batches in training mode."
        for path, call in following.items()
        if not _exports(call)
    ]


def _scaling(call: Call) -> str:
    return repr(cast(GridQuant, call.quantizer).scaling)


def _exports(call: Call) -> bool:
    """Whether torch exports what works out the scale, by itself."""
    try:
        with quiet():
            torch.onnx.export(_Scale(call), (torch.zeros(call.codes.shape),), dynamo=True, verbose=False)
    except Exception:
        return False
    return True


class _Scale(nn.Module):
    """The scale of a call's quantizer, and no more."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.quantizer = cast(GridQuant, call.quantizer)
        self.training = False

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scale = self.quantizer._scale(x)
        return (scale,) if self.quantizer.zero_point is None else (scale, self.quantizer._zero_of(x, scale))
