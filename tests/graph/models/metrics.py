"""Figures that say how well a model does, and how far it is from another one."""

import math

import torch
from torch import Tensor

__all__ = ["agreement", "cosine", "pearson", "sqnr", "top"]


def top(k: int, logits: Tensor, labels: Tensor) -> float:
    """The share of samples whose label is among the k largest logits."""
    return (logits.topk(k, dim=1).indices == labels[:, None]).any(1).double().mean().item()


def agreement(reference: Tensor, logits: Tensor) -> float:
    """The share of samples that both models put into the same class."""
    return (reference.argmax(1) == logits.argmax(1)).double().mean().item()


def sqnr(reference: Tensor, value: Tensor) -> float:
    """Signal to quantization noise in dB: 6 for each bit, infinite for equal tensors."""
    signal, noise = (each.double().square().sum().item() for each in (reference, reference - value))
    return 10 * math.log10(signal / noise) if noise else math.inf


def pearson(one: Tensor, two: Tensor) -> float:
    """The correlation of two rows of numbers."""
    return torch.corrcoef(torch.stack([one.flatten(), two.flatten()]).double())[0, 1].item()


def cosine(one: Tensor, two: Tensor) -> float:
    """The mean cosine between the rows of two matrices."""
    return torch.nn.functional.cosine_similarity(one.double(), two.double(), dim=1).mean().item()
