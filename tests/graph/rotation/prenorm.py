"""Small pre-norm transformers as users write them, of many habits."""

import torch
import torch.nn.functional as F
from torch import nn


class HandNorm(nn.Module):
    """An RMSNorm as language models write it."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class OneMore(HandNorm):
    """One whose gain is one more than its parameter."""

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class HandLayerNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.g, self.b = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x):
        centered = x - x.mean(-1, keepdim=True)
        return centered / torch.sqrt((centered**2).mean(-1, keepdim=True) + 1e-3) * self.g + self.b


class Scaled(nn.Embedding):
    """An embedding with a forward of its own."""

    def forward(self, input):  # noqa: A002 - torch's name for it
        return super().forward(input) * 4.0


def rotary(x):
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * torch.arange(1, half + 1, dtype=x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


class LlamaBlock(nn.Module):
    """Grouped-query attention with rotary embeddings and a gated MLP."""

    def __init__(self, norm, size=16, heads=4, groups=2, width=24, fused=True):
        super().__init__()
        self.heads, self.groups, self.fused = heads, groups, fused
        head = size // heads
        self.norm1, self.norm2 = norm(size), norm(size)
        self.q, self.k, self.v = (nn.Linear(size, n * head, bias=False) for n in (heads, groups, groups))
        self.o = nn.Linear(size, size, bias=False)
        self.gate, self.up, self.down = nn.Linear(size, width), nn.Linear(size, width), nn.Linear(width, size)

    def attend(self, x):
        split = ((self.q, self.heads), (self.k, self.groups), (self.v, self.groups))
        q, k, v = (layer(x).unflatten(-1, (heads, -1)).transpose(1, 2) for layer, heads in split)
        q, k = rotary(q), rotary(k)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return self.o(y.transpose(1, 2).flatten(2))
        k, v = (each[:, :, None].expand(-1, -1, self.heads // self.groups, -1, -1).flatten(1, 2) for each in (k, v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / 2, -1)
        return self.o((weights @ v).transpose(1, 2).reshape(x.shape))

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self, norm=nn.RMSNorm, fused=True, embedding=nn.Embedding, layers=1):
        super().__init__()
        self.embed = embedding(20, 16)
        self.blocks = nn.ModuleList(LlamaBlock(norm, fused=fused) for _ in range(layers))
        self.norm = norm(16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Conv1D(nn.Module):
    """GPT-2's linear layer."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / 4), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class GptBlock(nn.Module):
    def __init__(self, split, linear=nn.Linear, size=12):
        super().__init__()
        self.split = split
        self.ln1, self.ln2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv = linear(3 * size, size) if linear is Conv1D else linear(size, 3 * size)
        self.proj = linear(size, size)
        self.fc, self.out, self.drop = nn.Linear(size, 4 * size), nn.Linear(4 * size, size), nn.Dropout(0.1)

    def attend(self, x):
        batch, length, size = x.shape
        q, k, v = SPLITS[self.split](self.qkv(x), batch, length, size)
        scores = q @ k.transpose(-2, -1) * (size // 3) ** -0.5
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).contiguous().view(x.shape))

    def forward(self, x):
        x = x + self.drop(self.attend(self.ln1(x)))
        x += self.drop(self.out(F.gelu(self.fc(self.ln2(x)))))
        return x


def _heads(x):
    return x.view(*x.shape[:2], 3, -1).transpose(1, 2)


SPLITS = {
    "chunk": lambda x, *_: map(_heads, x.chunk(3, dim=-1)),
    "split": lambda x, batch, length, size: map(_heads, x.split(size, 2)),
    "unbind": lambda x, batch, length, size: x.reshape(batch, length, 3, 3, -1).permute(2, 0, 3, 1, 4).unbind(0),
    "slices": lambda x, batch, length, size: (_heads(x[..., n * size : (n + 1) * size]) for n in range(3)),
}


class Gpt(nn.Module):
    def __init__(self, split="chunk", linear=nn.Linear):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(20, 12), nn.Embedding(32, 12)
        self.h = nn.ModuleList([GptBlock(split, linear)])
        self.ln_f = nn.LayerNorm(12)
        self.head = nn.Linear(12, 20)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x)[:, -1])


class Patches(nn.Module):
    """A vision transformer of torch's own layers."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 5, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 24, norm_first=True, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, norm=nn.LayerNorm(16), enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.encoder(x)[:, 0])


class Shared(Llama):
    """One block, three times."""

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(3):
            x = self.blocks[0](x)
        return self.head(self.norm(x))


class Inline(nn.Module):
    """Norms that are no modules, one cast to float32 inside."""

    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(20, 16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 20)
        self.gain, self.gain2 = nn.Parameter(torch.ones(16)), nn.Parameter(torch.ones(16))

    def forward(self, ids):
        x = self.embed(ids)
        y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        x = x + self.down(F.relu(self.up(self.gain * y.type_as(x))))
        return self.head(F.rms_norm(x, (16,), self.gain2))


class Experts(nn.Module):
    """A mixture of experts, and another stream of another size behind it."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.router = nn.Embedding(20, 16), nn.RMSNorm(16), nn.Linear(16, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.SiLU(), nn.Linear(24, 16)) for _ in range(2))
        self.out, self.norm2, self.deep, self.head = nn.Linear(16, 8), nn.RMSNorm(8), nn.Linear(8, 8), nn.Linear(8, 20)

    def forward(self, ids):
        x = self.embed(ids)
        y = self.norm(x)
        weights = self.router(y).softmax(-1)
        x = x + sum(weights[..., k : k + 1] * expert(y) for k, expert in enumerate(self.experts))
        z = self.out(x)
        return self.head(z + self.deep(self.norm2(z)))


def of(kind, *args, dtype=torch.float64, seed=0, **kwargs):
    """A model of a kind, with gains and biases that matter."""
    torch.manual_seed(seed)
    model = kind(*args, **kwargs).to(dtype).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 2)
    return model


def ids(seed=0):
    return torch.randint(0, 20, (2, 7), generator=torch.Generator().manual_seed(seed))
