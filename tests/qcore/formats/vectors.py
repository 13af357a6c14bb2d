"""Golden vectors: values, in the bits of float32, and what exact fractions say they become."""

import json
from pathlib import Path

import torch
from torch import Tensor

from bitwright.qcore import E2M1, E2M3, E3M2, E4M3, E4M3FNUZ, E5M2, E5M2FNUZ, Minifloat

FORMATS = {
    "e4m3fn": E4M3,
    "e5m2": E5M2,
    "e4m3fnuz": E4M3FNUZ,
    "e5m2fnuz": E5M2FNUZ,
    "e3m2fn": E3M2,
    "e2m3fn": E2M3,
    "e2m1fn": E2M1,
    "e3m4": Minifloat(3, 4, infinities=True, nan=True),
    "e4m3": Minifloat(4, 3, infinities=True, nan=True),
    "e4m3b11fnuz": Minifloat(4, 3, 11, nan=True, negative_zero=False),
}


def golden(name: str) -> dict:
    return json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text())


def floats(text: str) -> Tensor:
    """Float32 numbers from their bits in hexadecimal digits."""
    bits = [int(word, 16) for word in text.split()]
    return torch.tensor([each - (1 << 32) if each >> 31 else each for each in bits], dtype=torch.int32).view(
        torch.float32
    )


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal, -0 and 0 told apart, and NaN equal to NaN."""
    known = torch.where(one.isnan(), 7.0, one), torch.where(other.isnan(), 7.0, other)
    return torch.equal(one.isnan(), other.isnan()) and all(
        torch.equal(*pair) for pair in (known, [each.signbit() for each in known])
    )
