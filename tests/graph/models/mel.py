"""Mel spectrograms, with the filters of Slaney's Auditory Toolbox, as librosa computes them by default."""

import math

import torch
from torch import Tensor

__all__ = ["mel_spectrogram"]

# Below `KNEE` hertz the scale is linear, `LINEAR` hertz a step; above, each step multiplies by `GROWTH`.
KNEE, LINEAR, GROWTH = 1000.0, 200.0 / 3, math.exp(math.log(6.4) / 27)


def _hertz(mel: Tensor) -> Tensor:
    knee = KNEE / LINEAR
    return torch.where(mel < knee, mel * LINEAR, KNEE * GROWTH ** (mel - knee).clamp(min=0))


def _filters(rate: int, window: int, bands: int) -> Tensor:
    """Triangles of area 1 over the frequencies of the spectrum: (bands, window // 2 + 1)."""
    highest = KNEE / LINEAR + math.log(rate / 2 / KNEE) / math.log(GROWTH)
    edges = _hertz(torch.linspace(0, highest, bands + 2, dtype=torch.float64))
    bins = torch.linspace(0, rate / 2, window // 2 + 1, dtype=torch.float64)
    low, middle, high = (edges[start : start + bands, None] for start in range(3))
    triangles = torch.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clamp(min=0)
    return triangles * 2 / (high - low)


def mel_spectrogram(
    wave: Tensor,  # (samples,)
    rate: int = 16000,
    window: int = 400,
    hop: int = 160,
    bands: int = 40,
) -> Tensor:  # (frames, bands)
    """The energy in each band of each frame."""
    hann = torch.hann_window(window, dtype=torch.float64)
    spectrum = torch.stft(wave.double(), window, hop, window=hann, pad_mode="constant", return_complex=True)
    return (_filters(rate, window, bands) @ spectrum.abs().square()).T.float()
