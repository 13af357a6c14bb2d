"""Hadamard matrices of many orders, and the layer that multiplies by one: online rotations."""

from functools import cache
from itertools import product

import torch
from torch import Tensor, nn

from ..qcore import QuantizerError
from .hadamard import hadamard

__all__ = ["HadamardTransform", "hadamard_block", "hadamard_matrix"]

LARGEST_FACTOR = 512


class HadamardTransform(nn.Module):
    """Rotates the last dimension: ``x @ H / sqrt(size)``, with a Hadamard matrix H of 1 and -1.

    Each value spreads over all channels, so that outliers disappear: what follows is quantized with less error. A
    linear layer behind it computes what it did before where its weight is ``W @ H / sqrt(size)``: that is what
    `bitwright.graph.rotate` does.

    It costs ``log2`` of the size additions a value, in butterflies, which every runtime adds up in the same order.
    Sizes that are no power of two take a product with a Paley matrix, too, of an order up to 512. Half precision is
    computed in float32.

    Args:
        size: of the last dimension.
        block_size: a divisor of the size; each block of so many channels is rotated by itself. None for the size.
        signs: 1 or -1 for each channel, which multiply the input first: a random rotation.

    Raises:
        QuantizerError: no Hadamard matrix of that order is known here, or a block that does not divide the size, or
            signs that are none.

    References:
        Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", 2024. Paley, "On Orthogonal Matrices",
        1933.

    Example:
        >>> HadamardTransform(4)(torch.tensor([8.0, 0.0, 0.0, 0.0]))
        tensor([4., 4., 4., 4.])
        >>> HadamardTransform(14336)
        HadamardTransform(14336 = 28 x 512)
    """

    signs: Tensor | None
    factor: Tensor | None

    def __init__(self, size: int, block_size: int | None = None, *, signs: Tensor | None = None) -> None:
        super().__init__()
        block = size if block_size is None else block_size
        if not _is_size(size) or not _is_size(block) or size % block:
            raise QuantizerError(
                f"HadamardTransform: size={size!r} and block_size={block_size!r}: expected whole numbers above 0, the "
                "block a divisor of the size."
            )
        found = _factored(block)
        if found is None:
            raise QuantizerError(
                f"HadamardTransform: no Hadamard matrix of order {block} is known here. Set "
                f"block_size={hadamard_block(block)} to rotate by blocks."
            )
        if signs is not None and (signs.shape != (size,) or not bool((signs.abs() == 1).all())):
            raise QuantizerError(
                f"HadamardTransform: signs are 1 or -1 for each of {size} channels, and a tensor of the shape "
                f"{tuple(signs.shape)}{'' if signs.shape != (size,) else ' with other values'} was given."
            )
        self.size, self.block_size = size, block
        self._order, self._width = found
        self.register_buffer("signs", signs)
        factor = _paley(self._order).float() if self._order > 1 else None
        self.register_buffer("factor", factor, persistent=False)  # (order, order)

    def forward(self, x: Tensor) -> Tensor:
        """The rotated values: (*, size)."""
        if x.ndim == 0 or x.shape[-1] != self.size:
            raise QuantizerError(
                f"HadamardTransform: the input has the shape {tuple(x.shape)}, and its last dimension should be "
                f"{self.size}."
            )
        shape, dtype = x.shape, x.dtype
        if dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        if self.signs is not None:
            x = x * self.signs.to(x.dtype)
        if self.factor is not None:
            x = x.reshape(*shape[:-1], self.size // self.block_size, self._order, self._width)
            x = torch.matmul(self.factor.T.to(x.dtype), x)
        half = self._width // 2
        while half:
            x = x.reshape(*shape[:-1], self.size // (2 * half), 2, half)
            one, other = x[..., 0, :], x[..., 1, :]
            x = torch.stack((one + other, one - other), -2)
            half //= 2
        return (x.reshape(shape) * self.block_size**-0.5).to(dtype)

    @property
    def additions(self) -> int:
        """What it costs: additions a value; a linear layer takes as many multiplications as it has outputs.

        Example:
            >>> HadamardTransform(4096).additions, HadamardTransform(14336).additions
            (12, 37)
        """
        return self._width.bit_length() - 1 + (self._order if self._order > 1 else 0)

    def extra_repr(self) -> str:
        if self.block_size != self.size:
            return f"{self.size}, {self.size // self.block_size} blocks of {self.block_size}"
        return f"{self.size} = {self._order} x {self._width}" if self._order > 1 else f"{self.size}"


def hadamard_matrix(order: int) -> Tensor:
    """A Hadamard matrix: entries of 1 and -1, and ``H @ H.T`` is the order times the identity, in float64.

    Sylvester's matrices of powers of two, times one of Paley's where the order has another factor. It is not symmetric
    in general: the inverse is the transpose over the order.

    Args:
        order: the number of rows.

    Raises:
        QuantizerError: no matrix of that order is known here.

    Example:
        >>> hadamard_matrix(12)[:2].int().tolist()
        [[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], [-1, 1, -1, 1, -1, -1, -1, 1, 1, 1, -1, 1]]
    """
    found = _factored(order) if _is_size(order) else None
    if found is None:
        raise QuantizerError(f"hadamard_matrix: no Hadamard matrix of order {order!r} is known here.")
    return torch.kron(_paley(found[0]), hadamard(found[1], found[1]).double())


def hadamard_block(size: int) -> int:
    """The block by which a dimension is rotated: all of it where there is a matrix, else its largest power of two.

    Example:
        >>> hadamard_block(4096), hadamard_block(11008), hadamard_block(14), hadamard_block(15)
        (4096, 11008, 2, 1)
    """
    return size if _factored(size) else size & -size


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size > 0


@cache
def _factored(size: int) -> tuple[int, int] | None:
    """The order of a Paley matrix and the power of two whose product is the size; None if there is none."""
    odd = size // (size & -size)
    if odd == 1:
        return 1, size
    orders = [odd << power for power in range(2, (size & -size).bit_length())]
    known = [order for order in orders if order <= LARGEST_FACTOR and _construction(order) is not None]
    return (known[0], size // known[0]) if known else None


def _construction(order: int) -> tuple[int, int, bool] | None:
    """The prime and the power of the field, and whether it is Paley's first construction; fields of primes first."""
    found: list[tuple[int, int, bool]] = []
    for first, elements, rest in ((True, order - 1, 3), (False, order // 2 - 1, 1)):
        field = _prime_power(elements)
        if field is not None and elements % 4 == rest:
            found.append((*field, first))
    return min(found, key=lambda each: (each[1], not each[2]), default=None)


def _prime_power(number: int) -> tuple[int, int] | None:
    """The prime and the exponent, up to 3, that a number is the power of."""
    for power in (1, 2, 3):
        root = round(number ** (1 / power))
        if root > 1 and root**power == number and all(root % each for each in range(2, int(root**0.5) + 1)):
            return root, power
    return None


def _paley(order: int) -> Tensor:
    """Paley's matrix of an order, in float64."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    found = _construction(order)
    assert found is not None
    prime, power, first = found
    residues = _residues(prime, power)
    size = len(residues) + 1
    inner = torch.zeros(size, size, dtype=torch.float64)
    inner[0, 1:], inner[1:, 0], inner[1:, 1:] = 1, -1 if first else 1, residues
    if first:
        return inner + torch.eye(size)
    corner = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(inner, corner) + torch.kron(torch.eye(size), diagonal)


def _residues(prime: int, power: int) -> Tensor:
    """For all pairs of a finite field's elements whether their difference is a square: 1, or -1, or 0 for none."""
    digits = torch.tensor(list(product(range(prime), repeat=power)))  # (elements, power), the constant term last
    place = prime ** torch.arange(power - 1, -1, -1)
    character = torch.full((prime**power,), -1.0, dtype=torch.float64)
    squares = torch.zeros(len(digits), 2 * power - 1, dtype=torch.int64)
    for one, other in product(range(power), repeat=2):
        squares[:, one + other] += digits[:, one] * digits[:, other]
    rest = _irreducible(prime, power)
    for position in range(power - 1):  # x ** power is -rest
        squares[:, position + 1 : position + 1 + power] -= squares[:, position : position + 1] * rest
    character[(squares[:, power - 1 :] % prime) @ place] = 1
    character[0] = 0
    return character[((digits.unsqueeze(1) - digits) % prime) @ place]


def _irreducible(prime: int, power: int) -> Tensor:
    """The lower coefficients of a polynomial with leading coefficient 1 that has no roots, up to degree 3."""
    x = torch.arange(prime)
    for rest in product(range(prime), repeat=power):
        values = x**power + sum(number * x ** (power - 1 - at) for at, number in enumerate(rest))
        if power == 1 or not bool((values % prime == 0).any()):
            return torch.tensor(rest)
    raise AssertionError(prime)
