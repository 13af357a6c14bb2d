"""Text for language models: where it comes from, its tokens, and what a model makes of it."""

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Bytes", "continued", "logits_of", "perplexity", "text_of", "windows"]


def text_of(path: Path | None) -> str:
    """A file, or else a text that every Python brings along: half a megabyte of its manual."""
    if path is not None:
        return path.read_text(encoding="utf-8")
    return "\n".join(importlib.import_module("pydoc_data.topics").topics.values())


class Bytes:
    """A tokenizer for models without one: a token is a byte of UTF-8."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token % 256 for token in tokens).decode(errors="replace")


def windows(tokens: Tensor, length: int, count: int, seed: int | None = None) -> list[Tensor]:
    """Pieces of a text, each (1, length): from its beginning, one behind the other, or from anywhere in it."""
    if len(tokens) < length:
        raise SystemExit(f"The text has {len(tokens)} tokens, fewer than --context {length}. Give a longer one.")
    if seed is None:
        return list(tokens[: len(tokens) // length * length].reshape(-1, 1, length)[:count])
    chance = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(tokens) - length + 1, (count,), generator=chance).tolist()
    return [tokens[start : start + length].unsqueeze(0) for start in starts]


def logits_of(result: Any) -> Tensor:
    """The logits, (N, tokens, vocabulary), in what a model returns: they, a record that has them, or a tuple."""
    if isinstance(result, Tensor):
        return result
    return result.logits if hasattr(result, "logits") else result[0]


@torch.no_grad()
def perplexity(model: nn.Module, batches: Sequence[Tensor], name: str = "model") -> float:
    """How many tokens, all of them as likely, the model wavers between: ``exp`` of the mean loss of the next token."""
    total, count = 0.0, 0
    for batch in track(batches, f"perplexity of {name}"):
        logits = logits_of(model(batch))[:, :-1].float()
        total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").double().item()
        count += batch[:, 1:].numel()
    return math.exp(min(total / count, 700.0))


@torch.no_grad()
def continued(model: Any, tokens: Tensor, count: int) -> Tensor:
    """Tokens, (1, T), and those that the model finds the most likely to follow, (1, T + count)."""
    if hasattr(model, "generation_config"):  # of Hugging Face
        mask = torch.ones_like(tokens)
        return model.generate(tokens, attention_mask=mask, max_new_tokens=count, do_sample=False)
    if hasattr(model, "generate"):
        return model.generate(tokens, count)
    for _ in range(count):
        tokens = torch.cat([tokens, logits_of(model(tokens))[:, -1:].argmax(-1)], 1)
    return tokens
