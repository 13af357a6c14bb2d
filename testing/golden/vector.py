"""A golden vector, and how its numbers are written."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["FOLDER", "Vector", "bits_of", "numbers_of"]

FOLDER = Path(__file__).parent / "vectors"


@dataclass(frozen=True)
class Vector:
    """Numbers, a grid and a rounding, with the results.

    Attributes:
        scale: float32.
        zero_point: an integer of the format.
        rounding: as in the attribute ``rounding`` of a quantizer.
        x: float32 numbers to quantize.
        codes: their integers; of other formats, their codes.
        values: the float32 values of these.

    Example:
        >>> from bitwright.testing import golden_vectors
        >>> golden_vectors("int4")[0].values.dtype.name
        'float32'
    """

    scale: float
    zero_point: int
    rounding: str
    x: np.ndarray
    codes: np.ndarray
    values: np.ndarray


def bits_of(numbers: np.ndarray) -> str:
    """float32 numbers as their bits in hexadecimal: 1.0 is 3f800000."""
    return " ".join(f"{each:08x}" for each in numbers.astype(np.float32).view(np.uint32).tolist())


def numbers_of(bits: str) -> np.ndarray:
    """The float32 numbers with these bits."""
    return np.array([int(each, 16) for each in bits.split()], dtype=np.uint32).view(np.float32)
