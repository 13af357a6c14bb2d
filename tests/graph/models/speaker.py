"""An LSTM that turns speech into a vector (Wan et al., 2017), under the state-dict keys of resemblyzer."""

import torch
from torch import Tensor, nn

__all__ = ["SpeakerEncoder"]


class SpeakerEncoder(nn.Module):
    """Mel spectrograms (N, frames, bands) to vectors of length 1."""

    def __init__(self, bands: int = 40, width: int = 256, layers: int = 3) -> None:
        super().__init__()
        self.lstm = nn.LSTM(bands, width, layers, batch_first=True)
        self.linear = nn.Linear(width, width)
        self.relu = nn.ReLU()

    def forward(self, mels: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mels)
        raw = self.relu(self.linear(hidden[-1]))
        return raw / torch.norm(raw, dim=1, keepdim=True)
