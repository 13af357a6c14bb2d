"""Tensors that both libraries make from their name, so that golden files need not hold them."""

import zlib
from collections.abc import Mapping

import numpy as np

LARGE = 64  # elements from which on a parameter is made from its name


def seeded(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Normally distributed numbers of the size that a layer's weights have; the same wherever numpy runs."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    fan_in = max(1, int(np.prod(shape[1:])))
    return (generator.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


def is_seeded(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of the state is made from its name, rather than kept in the file."""
    return len(shape) > 1 and int(np.prod(shape)) >= LARGE


def completed(names: Mapping[str, tuple[int, ...]], kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a state dict: those that a file keeps, and those that are made from their names."""
    return {name: kept[name] if name in kept else seeded(name, shape) for name, shape in names.items()}
