"""A small language model shaped like Llama, and its training: what llm_ptq.py quantizes where it is given no other."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Config", "LanguageModel", "train"]

Cache = list[tuple[Tensor, Tensor]]  # of each block, the keys and values so far: (N, heads, tokens, features)


@dataclass(frozen=True)
class Config:
    """The sizes of a model; by default those of one that a CPU trains in a minute."""

    vocabulary: int = 256
    width: int = 128
    blocks: int = 4
    heads: int = 4
    key_heads: int = 2  # each is shared by heads / key_heads query heads
    hidden: int = 384
    tied: bool = False  # the head has the weight of the embedding


def rotated(x: Tensor, start: int) -> Tensor:
    """Rotary position embeddings of (N, heads, tokens, features), whose first token is number `start`."""
    half = x.shape[-1] // 2
    places = torch.arange(x.shape[-2], device=x.device) + start
    angles = places[:, None] * 10000.0 ** (-torch.arange(half, device=x.device) / half)  # (tokens, features / 2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    one, other = x.chunk(2, -1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)


class Attention(nn.Module):
    """Causal attention whose groups of query heads share keys and values."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.features = config.width // config.heads
        self.q_proj = nn.Linear(config.width, config.heads * self.features, bias=False)
        self.k_proj = nn.Linear(config.width, config.key_heads * self.features, bias=False)
        self.v_proj = nn.Linear(config.width, config.key_heads * self.features, bias=False)
        self.o_proj = nn.Linear(config.heads * self.features, config.width, bias=False)

    def forward(self, x: Tensor, before: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        start = 0 if before is None else before[0].shape[-2]
        query, key, value = (
            project(x).unflatten(-1, (-1, self.features)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotated(query, start), rotated(key, start)
        if before is not None:
            key, value = torch.cat([before[0], key], -2), torch.cat([before[1], value], -2)
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=x.device).tril(start)
        out = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(2)), (key, value)


class GatedMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = nn.RMSNorm(config.width, eps=1e-6), Attention(config)
        self.post_attention_layernorm, self.mlp = nn.RMSNorm(config.width, eps=1e-6), GatedMLP(config)

    def forward(self, x: Tensor, before: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attended, cache = self.self_attn(self.input_layernorm(x), before)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class LanguageModel(nn.Module):
    """Tokens to the logits of the next token.

    Called with a list as ``cache``, it goes on behind the tokens whose keys and values are in it, and adds those of the
    new ones.
    """

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config or Config()
        self.embed_tokens = nn.Embedding(self.config.vocabulary, self.config.width)
        self.layers = nn.ModuleList(Block(self.config) for _ in range(self.config.blocks))
        self.norm = nn.RMSNorm(self.config.width, eps=1e-6)
        self.lm_head = nn.Linear(self.config.width, self.config.vocabulary, bias=False)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        if self.config.tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: Tensor, cache: Cache | None = None) -> Tensor:
        x = self.embed_tokens(input_ids)
        before, now = iter(cache or ()), []
        for layer in self.layers:
            x, kept = layer(x, next(before, None))
            now.append(kept)
        if cache is not None:
            cache[:] = now
        return self.lm_head(self.norm(x))  # (N, tokens, vocabulary)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, max_new_tokens: int) -> Tensor:
        """The tokens, and those that are the most likely to follow."""
        cache: Cache = []
        new = input_ids
        for _ in range(max_new_tokens):
            new = self(new, cache)[:, -1:].argmax(-1)
            input_ids = torch.cat([input_ids, new], 1)
        return input_ids


def train(model: nn.Module, tokens: Tensor, steps: int, length: int = 128, rate: float = 4e-3, seed: int = 0) -> float:
    """Teach a model a text, in place.

    Returns:
        The last loss, averaged over about 20 steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    average = 0.0
    model.train()
    for number, batch in enumerate(track(_excerpts(tokens, steps, length, seed), "train", total=steps)):
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average += (loss.item() - average) / min(number + 1, 20)
    model.eval()
    return average


def _excerpts(tokens: Tensor, steps: int, length: int, seed: int, size: int = 16) -> Iterator[Tensor]:
    """Batches of pieces of a text from anywhere in it: (size, length + 1)."""
    chance = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - length, (size,), generator=chance)
        yield tokens[starts[:, None] + torch.arange(length + 1)]
