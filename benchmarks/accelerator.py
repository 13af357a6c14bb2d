"""Training steps on a GPU, quantized against float: row 35 of the budgets.

    python -m benchmarks.accelerator

ResNet-50 (64 images of 224x224) and a transformer of twelve layers (32 sequences of 256 tokens, width 768), in
bfloat16, with 8-bit weights per channel and 8-bit inputs of every layer, converted by `bitwright.graph.quantize`.
Steps of both models alternate; a step is forward, backward and SGD. CUDA events time them.
"""

import statistics
import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.graph import W8A8, calibrate, quantize

__all__ = ["Encoder", "ResNet50", "main"]


class Bottleneck(nn.Module):
    """A block of ResNet-50."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.norm3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != 4 * width:
            conv = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.relu(self.norm2(self.conv2(out)))
        return self.relu(self.norm3(self.conv3(out)) + self.shortcut(x))


class ResNet50(nn.Module):
    """ResNet-50 for 1000 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        blocks, channels = [], 64
        for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for index in range(count):
                blocks.append(Bottleneck(channels, width, stride if index == 0 else 1))
                channels = 4 * width
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(2048, 1000)

    def forward(self, images: Tensor) -> Tensor:
        out = self.pool(self.relu(self.norm(self.conv(images))))
        return self.head(self.blocks(out).mean((2, 3)))


class Layer(nn.Module):
    """A layer of the transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Twelve layers, and a classifier of the mean."""

    def __init__(self, width: int = 768, heads: int = 12, layers: int = 12) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean(1))


def _step(model: nn.Module, x: Tensor, labels: Tensor, compiled: bool) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(forward(x).float(), labels).backward()
        optimizer.step()

    return step


def _milliseconds(step: Callable[[], None]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def ratio(make: Callable[[], nn.Module], x: Tensor, compiled: bool, rounds: int = 40) -> tuple[float, float, float]:
    """Medians of the float step, of the quantized one, in milliseconds, and of the ratios of pairs."""
    labels = torch.randint(1000, x.shape[:1], device=x.device)
    model = make().to(x.device, x.dtype)
    quantized = quantize(model, W8A8)
    calibrate(quantized, [x[:8]], progress=False)
    steps = [_step(each.train(), x, labels, compiled) for each in (model, quantized)]
    for step in steps:
        for _ in range(5):
            step()
    pairs = [[_milliseconds(step) for step in steps] for _ in range(rounds)]
    return (
        statistics.median(pair[0] for pair in pairs),
        statistics.median(pair[1] for pair in pairs),
        statistics.median(pair[1] / pair[0] for pair in pairs),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    if not torch.cuda.is_available():
        print("There is no GPU here that torch can use.", file=sys.stderr)
        return 1
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16")
    works = {"ResNet-50": (ResNet50, (64, 3, 224, 224)), "transformer": (Encoder, (32, 256, 768))}
    for name, (make, shape) in works.items():
        for compiled in (False, True):
            x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
            one, other, by = ratio(make, x, compiled)
            how = "compiled" if compiled else "eager"
            print(f"{name}, {how}: float {one:.2f} ms, quantized {other:.2f} ms, ratio {by:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
