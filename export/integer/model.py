"""The integers of a whole model, and what can be done with them."""

import os
from dataclasses import dataclass

from .c_header import to_c_header
from .files import load, save_npz, save_safetensors
from .layers import LayerTable

__all__ = ["Integers"]


@dataclass(frozen=True)
class Integers(LayerTable):
    """The integers of a model: a mapping from the path of a layer to `LayerIntegers`, in order of execution.

    `integers` takes them from a model. They can be saved and read back exactly, or written as a C header.

    Attributes:
        layers: by path.
        floats: what the model computes in floats, module by module, before the first quantizer, between two, and after
            the last.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> from bitwright.export import integers
        >>> model = torch.nn.Sequential(qnn.QuantIdentity(scale=0.5, bit_width=4), qnn.QuantReLU(scale=0.5))
        >>> print(integers(model, torch.ones(2)))
        0 (QuantIdentity): act int4, scale 0.5
        1 (QuantReLU): act uint8, scale 0.5
    """

    def save_npz(self, path: str | os.PathLike[str]) -> None:
        """Write a compressed numpy archive, integers packed without gaps; see `bitwright.export.integer.files`.

        Raises:
            ExportError: numpy is not installed.
        """
        save_npz(self, path)

    def save_safetensors(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file of the same content.

        Raises:
            ExportError: safetensors is not installed.
        """
        save_safetensors(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Integers":
        """Read what `save_npz` or `save_safetensors` wrote; equal to what was saved.

        Raises:
            ExportError: the file is of neither kind, or damaged.
        """
        return Integers(*load(path))

    def to_c_header(self, name: str = "model") -> str:
        """The text of a C header with every array and number, see `bitwright.export.integer.c_header`.

        Raises:
            ExportError: something between two quantizers is computed in floats, or in a way that the header can't say;
                all of it is listed.
        """
        return to_c_header(self, name)
