"""all-MiniLM-L6-v2, a BERT encoder (Devlin et al., 2018), written in two ways.

`MiniLM` computes attention by plain matmul and softmax, under the published state-dict keys. `TorchMiniLM` is made of
torch.nn.TransformerEncoder; `torch_keys` turns the published keys into its own.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MiniLM", "Sizes", "TorchMiniLM", "torch_keys"]


@dataclass(frozen=True)
class Sizes:
    """What is large about it."""

    vocabulary: int = 30522
    positions: int = 512
    width: int = 384
    heads: int = 12
    hidden: int = 1536
    layers: int = 6


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention of all heads: (N, heads, tokens, width of a head)."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
    return torch.matmul(torch.softmax(scores, dim=-1), v)


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over the tokens of each sentence, of length 1."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


class Embeddings(nn.Module):
    """Words, positions and token types, added up and normalized."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes.vocabulary, sizes.width, padding_idx=0)
        self.position_embeddings = nn.Embedding(sizes.positions, sizes.width)
        self.token_type_embeddings = nn.Embedding(2, sizes.width)
        self.LayerNorm = nn.LayerNorm(sizes.width, eps=1e-12)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.word_embeddings(tokens) + self.position_embeddings(positions)
        return self.LayerNorm(x + self.token_type_embeddings(torch.zeros_like(tokens)))


class SelfAttention(nn.Module):
    """q, k and v of one input; the mathematics is in a function of the file."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.query = nn.Linear(sizes.width, sizes.width)
        self.key = nn.Linear(sizes.width, sizes.width)
        self.value = nn.Linear(sizes.width, sizes.width)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        return attend(q, k, v, bias).transpose(1, 2).flatten(2)


class Output(nn.Module):
    """Linear, residual, LayerNorm."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(features, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    """Self-attention and its output."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.add_module("self", SelfAttention(sizes))
        self.output = Output(sizes.width, sizes.width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.output(self.get_submodule("self")(x, bias), x)


class Intermediate(nn.Module):
    """Linear and GELU."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.dense = nn.Linear(sizes.width, sizes.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """One block of the encoder."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention = Attention(sizes)
        self.intermediate = Intermediate(sizes)
        self.output = Output(sizes.hidden, sizes.width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.attention(x, bias)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    """The blocks."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x, bias)
        return x


class MiniLM(nn.Module):
    """Sentences to vectors of length 1: `tokens` (N, tokens) of whole numbers, `mask` 1 where there is a token."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        super().__init__()
        sizes = sizes or Sizes()
        self.embeddings = Embeddings(sizes)
        self.encoder = Encoder(sizes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        bias = (1.0 - mask[:, None, None, :].to(torch.float32)) * -1e4
        return pooled(self.encoder(self.embeddings(tokens), bias), mask)


class TorchMiniLM(nn.Module):
    """The same function, of torch.nn.TransformerEncoder."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        super().__init__()
        sizes = sizes or Sizes()
        self.embeddings = Embeddings(sizes)
        layer = nn.TransformerEncoderLayer(
            sizes.width, sizes.heads, sizes.hidden, 0.1, "gelu", layer_norm_eps=1e-12, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, sizes.layers, enable_nested_tensor=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(self.embeddings(tokens), src_key_padding_mask=mask == 0)
        return pooled(hidden, mask)


# Of one block: torch's name, and the published one
PARTS = {
    "self_attn.out_proj": "attention.output.dense",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm1": "attention.output.LayerNorm",
    "norm2": "output.LayerNorm",
}


def torch_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of `MiniLM` for `TorchMiniLM`: q, k and v become one matrix."""
    found = {key: value for key, value in state.items() if key.startswith("embeddings.")}
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder."))
    for number in range(layers):
        here, there = f"encoder.layers.{number}", f"encoder.layer.{number}"
        for kind in ("weight", "bias"):
            qkv = [state[f"{there}.attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            found[f"{here}.self_attn.in_proj_{kind}"] = torch.cat(qkv)
            for part, published in PARTS.items():
                found[f"{here}.{part}.{kind}"] = state[f"{there}.{published}.{kind}"]
    return found
