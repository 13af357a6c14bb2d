"""Tensors that both libraries make from their name, so that golden files need not hold them."""

import zlib
from collections.abc import Mapping

import numpy as np

LARGE = 64  # elements from which on a parameter is made from its name


def seeded(name: str, shape: tuple[int, ...], spread: float | None = None) -> np.ndarray:
    """Normally distributed numbers, the same wherever numpy runs.

    Args:
        name: of the tensor.
        shape: of the tensor.
        spread: their standard deviation; None for that of a layer's first weights.
    """
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    fan_in = max(1, int(np.prod(shape[1:])))
    return (generator.standard_normal(shape) * (fan_in**-0.5 if spread is None else spread)).astype(np.float32)


def is_seeded(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of the state is made from its name, rather than kept in the file: a weight of some size."""
    return name.endswith((".weight", ".weight_v")) and len(shape) > 1 and int(np.prod(shape)) >= LARGE


def completed(
    names: Mapping[str, tuple[int, ...]], kept: Mapping[str, np.ndarray], spread: float | None
) -> dict[str, np.ndarray]:
    """The tensors of a state dict: those that a file keeps, and those that are made from their names."""
    return {name: kept[name] if name in kept else seeded(name, shape, spread) for name, shape in names.items()}
