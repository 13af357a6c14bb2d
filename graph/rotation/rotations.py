"""Which matrices rotate features."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...nn.hadamard_transform import HadamardTransform, hadamard_block, hadamard_matrix

__all__ = ["Rotations"]


@dataclass(frozen=True)
class Rotations:
    """The rotations of one call, numbered.

    Args:
        kind: "random" for Hadamard matrices behind random signs; without signs for all others.
        block_size: the largest block that is mixed, None for any.
        seed: of the signs.

    Example:
        >>> Rotations("hadamard", None, 0).matrix(2, 0) * 2**0.5
        tensor([[ 1.,  1.],
                [ 1., -1.]], dtype=torch.float64)
        >>> Rotations("random", 16, 0).text(96)
        'random 6 x Hadamard 16'
    """

    kind: str
    block_size: int | None
    seed: int

    def block(self, size: int) -> int:
        """The block of features that is mixed."""
        if self.block_size is None:
            return hadamard_block(size)
        fitting = [each for each in range(1, min(size, self.block_size) + 1) if size % each == 0]
        return max(each for each in fitting if hadamard_block(each) == each)

    def matrix(self, size: int, number: int) -> Tensor:
        """R, in float64, so that features become ``x @ R``."""
        block = self.block(size)
        matrix = torch.block_diag(*[hadamard_matrix(block) / block**0.5] * (size // block))
        signs = self._signs(size, number)
        return matrix if signs is None else matrix * signs.double().unsqueeze(1)

    def transform(self, size: int, number: int) -> HadamardTransform:
        """The same as a module."""
        return HadamardTransform(size, self.block(size), signs=self._signs(size, number))

    def _signs(self, size: int, number: int) -> Tensor | None:
        if self.kind != "random":
            return None
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1

    def text(self, size: int) -> str:
        """What a report calls it."""
        block = self.block(size)
        start = "random " if self.kind == "random" else ""
        return f"{start}Hadamard {size}" if block == size else f"{start}{size // block} x Hadamard {block}"
