"""Statistics of the literature: where learned scales start, and clipping levels by the shape of a distribution."""

import torch
from torch import Tensor

from ..errors import SettingError
from ..formats.int_range import IntRange
from ..formats.odd_integers import OddIntegers
from ..kernels.composed import composed
from ..protocols import Levels

__all__ = ["LSQPlusStart", "LSQStart", "MinSquaredErrorInterval", "StatisticsAwareBinning", "require_integers"]


class LSQStart:
    """Where LSQ starts its step size: ``2 * mean|v| / sqrt(Qp)``, with Qp the highest level.

    Esser et al., "Learned Step Size Quantization", 2020, section 2.1. The start is wide for weights: the more bits,
    the more (``statistic="mse"`` is the nearest one).

    Args:
        number_format: the levels of the grid.

    Example:
        >>> from bitwright.qcore import IntRange
        >>> LSQStart(IntRange(3, signed=True))(torch.tensor([[3.0, -1.0]]))  # T = 4 steps of 2 * 2 / sqrt(3)
        tensor([9.2376])
    """

    def __init__(self, number_format: Levels) -> None:
        self.number_format = number_format

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Tensor:
        """The magnitude of the largest level, of each row. It has no gradient."""
        levels, threshold = self.number_format.settled(), self.number_format.threshold
        high = torch.as_tensor(levels.high, dtype=rows.dtype, device=rows.device)
        return rows.abs().mean(1) * (2 * threshold / high.sqrt())

    def __repr__(self) -> str:
        return "LSQStart()"


class LSQPlusStart:
    """Where LSQ+ starts the range of weights: ``max(|mean - 3 * std|, |mean + 3 * std|)``.

    Bhalgat et al., "LSQ+: Improving Low-bit Quantization through Learnable Offsets and Better Initialization", 2020,
    section 3.2.

    Args:
        sigma: how many standard deviations, 0 or more.

    Raises:
        SettingError: a negative sigma, or one that is no number.

    Example:
        >>> LSQPlusStart()(torch.tensor([[3.0, -1.0]]))  # 1 + 3 * 2
        tensor([7.])
    """

    def __init__(self, sigma: float = 3.0) -> None:
        if isinstance(sigma, bool) or not isinstance(sigma, (int, float)) or not sigma >= 0:
            raise SettingError("sigma", sigma, "a number of standard deviations, 0 or more")
        self.sigma = sigma

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Tensor:
        """The range of each row; the deviation is that of the population. It has no gradient."""
        mean = rows.mean(1)
        return mean.abs() + self.sigma * (rows - mean[:, None]).square().mean(1).sqrt()

    def __repr__(self) -> str:
        return f"LSQPlusStart({self.sigma})"


class MinSquaredErrorInterval:
    """The interval whose grid moves the values least: a search for both ends. Serves zero points.

    It is where LSQ+ starts scale and offset of activations (Bhalgat et al., 2020, section 3.2).

    Args:
        number_format: the integers of the grid.
        search_steps: how many evenly spaced candidates are tried for an end, each of two times.

    Raises:
        SettingError: fewer than 1 step, or levels that are no integers.

    Example:
        >>> from bitwright.qcore import IntRange
        >>> statistic = MinSquaredErrorInterval(IntRange(4, signed=False))
        >>> rows = torch.cat([torch.linspace(-1, 2, 999), torch.tensor([20.0])]).reshape(1, -1)
        >>> statistic(rows).item() < 15, statistic.low(rows).item() >= -1
        (True, True)
    """

    def __init__(self, number_format: Levels, search_steps: int = 8) -> None:
        if isinstance(search_steps, bool) or not isinstance(search_steps, int) or search_steps < 1:
            raise SettingError("search_steps", search_steps, "a whole number, 1 or more")
        require_integers("mse_interval", number_format)
        self.number_format = number_format
        self.search_steps = search_steps

    def __call__(self, rows: Tensor) -> Tensor:
        """The width of the best interval of each row. It has no gradient."""
        low, high = self._search(rows)
        return high - low

    def low(self, rows: Tensor) -> Tensor:
        """The lower end of the best interval of each row."""
        return self._search(rows)[0]

    @torch.no_grad()
    def _search(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        ends = [rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)]
        least = self._error(rows, *ends)
        for end in (1, 0, 1, 0):
            full = ends[end]
            for step in range(self.search_steps - 1, -1, -1):
                tried = list(ends)
                tried[end] = full * (step / self.search_steps)
                error = self._error(rows, *tried)
                better = error < least
                ends[end], least = torch.where(better, tried[end], ends[end]), torch.where(better, error, least)
        return ends[0], ends[1]

    def _error(self, rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The sum of squares of what quantization moves the values by."""
        levels = self.number_format.settled(lambda width: width.reshape(-1, 1))
        width = (high - low)[:, None]
        scale = (width / levels.high).clamp_min(torch.finfo(rows.dtype).tiny)
        zero_point = torch.round(-low[:, None] / scale).clamp(0, levels.high)
        return (composed(rows, scale, levels, zero_point) - rows).square().sum(1)

    def __repr__(self) -> str:
        return f"MinSquaredErrorInterval({self.search_steps} steps)"


# For a clipping level of c1 * sqrt(mean(w**2)) - c2 * mean|w|, by bit width
_EVEN_LEVELS = {2: (3.12, 2.064), 3: (7.509, 6.892), 4: (12.68, 12.80), 5: (17.74, 18.64)}
_WITH_ZERO = {2: (2.6, 1.71), 4: (12.035, 12.03), 7: (28.24, 30.81), 8: (31.76, 35.04)}


class StatisticsAwareBinning:
    """SAWB's clipping level: ``c1 * sqrt(mean(w**2)) - c2 * mean|w|``, nearest to the best for usual distributions.

    The coefficients were fitted once for each count of levels. With 0 among the levels (signed integers of a narrow
    range) they are known for 2, 4, 7 and 8 bits, with an even number of levels around 0 (`OddIntegers`, which the paper
    has) for 2, 3, 4 and 5. For distributions of other shapes, for which the formula gives nothing above 0, or more than
    the largest magnitude, the level is the largest magnitude. It has no gradient.

    Choi et al., "Accurate and Efficient 2-bit Quantized Neural Networks", 2019; the coefficients beyond 2 bits are
    those that its authors published with their code.

    Args:
        number_format: the levels of the grid.

    Raises:
        SettingError: levels for which there are no coefficients.

    Example:
        >>> from bitwright.qcore import IntRange
        >>> sawb = StatisticsAwareBinning(IntRange(4, signed=True, narrow_range=True))
        >>> sawb(torch.tensor([[3.0, -1.0, 0.0, 0.0]]))  # 12.035 * sqrt(2.5) - 12.03 * 1 is more than 3
        tensor([3.])
        >>> sawb(torch.tensor([[3.0, -1.0, 1.0, 1.0]]))  # 12.035 * sqrt(3) - 12.03 * 1.5
        tensor([2.8002])
    """

    def __init__(self, number_format: Levels) -> None:
        even = isinstance(number_format, OddIntegers)
        known = _EVEN_LEVELS if even else _WITH_ZERO
        plain = even or (isinstance(number_format, IntRange) and not number_format.learned and number_format.symmetric)
        width = number_format.bit_width if plain else None
        if not isinstance(width, int) or width not in known:
            raise SettingError(
                "statistic",
                "sawb",
                f"another statistic than SAWB's: it has no coefficients for {number_format}",
                "It knows signed integers of a narrow range with 2, 4, 7 or 8 bits, and OddIntegers of 2 to 5.",
            )
        self.number_format = number_format
        self.coefficients = known[width]

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Tensor:
        """The clipping level of each row."""
        magnitudes = rows.abs()
        largest, (root, mean) = magnitudes.amax(1), self.coefficients
        found = root * magnitudes.square().mean(1).sqrt() - mean * magnitudes.mean(1)
        return torch.where((found > 0) & (found < largest), found, largest)

    def __repr__(self) -> str:
        return "StatisticsAwareBinning({}, {})".format(*self.coefficients)


def require_integers(statistic: str, number_format: Levels) -> None:
    """Refuse levels that are no integers, by a `SettingError`.

    Example:
        >>> from bitwright.qcore import IntRange
        >>> require_integers("kl", IntRange(4, signed=True))
    """
    if not (isinstance(number_format, IntRange) or number_format.whole):
        expected = f"another statistic: {statistic!r} is for integers, and the levels are {number_format}"
        raise SettingError("statistic", statistic, expected, "Write statistic='mse'.")
