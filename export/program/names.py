"""What the tensors of quantizers are called in a program, where a name is a Python identifier."""

import re
from collections.abc import Iterable

from ...qcore.tracing import current_step
from ..capture.numbering import numbered

__all__ = ["Names"]


class Names:
    """Names of nodes for the calls of a model's quantizers, the same whenever they are made for the same model.

    Args:
        paths: of all quantizers, in their order.

    Example:
        >>> names = Names(["0.act_quant", "0_act.quant", "0_act_quant"])
        >>> names.node("codes", "0.act_quant", 0), names.node("values", "0.act_quant", 1)
        ('codes_0_act_quant', 'values_0_act_quant__1')
        >>> names.node("codes", "0_act.quant", 0)
        'codes_0_act_quant__b'
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._identifiers: dict[str, str] = {}
        taken: set[str] = set()
        for path in paths:
            found = re.sub(r"\W", "_", path)
            while found in taken:
                found = f"{found}__b"
            taken.add(found)
            self._identifiers[path] = found

    def node(self, role: str, path: str, index: int) -> str:
        """The name of one tensor of a call, in the step of a loop that is at work.

        Args:
            role: ``codes``, ``values``, ``levels``, ``scale`` or ``zero_point``.
            path: of the quantizer.
            index: how many calls of it came before.
        """
        step = current_step()
        again = f"__{index}" if index else ""
        return f"{role}_{self._identifiers[path]}{again}" + ("" if step is None else f"__step_{step.number}")

    @staticmethod
    def buffer(role: str, path: str, index: int) -> str:
        """The name of a stored tensor of a call, as a state dict has it."""
        return f"{numbered(path, index)}.{role}"
