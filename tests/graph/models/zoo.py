"""The models of the tests of whole-model operations: plain torch, none knows bitwright.

Real networks (`resnet18`, `mobilenet_v2`, `minilm` ...) are built whole, or tiny for quick tests. Each entry says what
its float model is able to: quantizing must not take it away, and nobody can ask for more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .branching import Branching
from .detector import Detector
from .digit_cnn import DigitCNN
from .layers import Decoder, Late, Normed, Uneven
from .minilm import MiniLM, Sizes, TorchMiniLM
from .mobilenet import MobileNetV2
from .padded import PaddedNet
from .resnet import ResNet
from .sharing import CalledTwice, Tied
from .speaker import SpeakerEncoder

__all__ = ["ZOO", "Entry", "applied", "tensors_of", "tiny_mobilenet_v2"]

Call = tuple[Any, ...]  # the positional arguments of one call; a lone dict in it is one argument

TINY_SIZES = Sizes(vocabulary=64, positions=16, width=16, heads=2, hidden=32, layers=2)
TINY_STAGES = ((1, 8, 1, 1), (6, 8, 2, 2), (6, 16, 2, 2))


@dataclass(frozen=True)
class Entry:
    """A model, its inputs, and what the float model is able to.

    Attributes:
        name: of the entry.
        whole: makes the model as published; the same as `tiny` where there is only one size.
        tiny: makes a small one of the same structure.
        call: arguments of one call, from a generator and whether for the tiny one.
        branches: calls that between them reach every operation, in the same form.
        compiles: torch.compile(fullgraph=True) takes the float model.
        exports: torch.onnx.export takes the float model; of a call whose last argument is a dict, with `{}` after it.
        why: the reason where one of them is false.
    """

    name: str
    whole: Callable[[], nn.Module]
    tiny: Callable[[], nn.Module]
    call: Callable[[torch.Generator, bool], Call]
    branches: Callable[[torch.Generator, bool], list[Call]] | None = None
    compiles: bool = True
    exports: bool = True
    why: str = ""

    def build(self, tiny: bool = True, seed: int = 0) -> nn.Module:
        """The float model in evaluation mode, with weights from the seed and BatchNorms that look as if trained."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.tiny() if tiny else self.whole()
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    _train(module)
        return model.eval()

    def example(self, tiny: bool = True, seed: int = 0) -> Call:
        """The arguments of one call."""
        return self.call(torch.Generator().manual_seed(seed), tiny)

    def examples(self, tiny: bool = True, seed: int = 0) -> list[Call]:
        """Calls that between them reach every operation."""
        chance = torch.Generator().manual_seed(seed)
        return self.branches(chance, tiny) if self.branches else [self.call(chance, tiny)]

    def batches(self, count: int, tiny: bool = True, seed: int = 1) -> list[Call]:
        """Calls for calibration, all of them different."""
        chance = torch.Generator().manual_seed(seed)
        return [self.call(chance, tiny) for _ in range(count)]


def _train(norm: nn.modules.batchnorm._BatchNorm) -> None:
    """Statistics and parameters that make folding more than a copy."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, std=0.2)
    nn.init.normal_(norm.running_mean, std=0.2)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors in whatever a model returned, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        return [tensor for value in output.values() for tensor in tensors_of(value)]
    return [tensor for value in output for tensor in tensors_of(value)] if isinstance(output, (list, tuple)) else []


@torch.no_grad()
def applied(model: nn.Module, call: Call) -> list[Tensor]:
    """What the model returns for one call, as a list of tensors."""
    return tensors_of(model(*call))


def _images(channels: int, size: int, tiny_size: int, batch: int = 2) -> Callable[[torch.Generator, bool], Call]:
    def call(chance: torch.Generator, tiny: bool) -> Call:
        side = tiny_size if tiny else size
        return (torch.randn(batch, channels, side, side, generator=chance),)

    return call


def _sentences(chance: torch.Generator, tiny: bool) -> Call:
    """Two sentences, the second one padded."""
    length, words = (8, TINY_SIZES.vocabulary) if tiny else (32, Sizes().vocabulary)
    tokens = torch.randint(1, words, (2, length), generator=chance)
    mask = torch.ones_like(tokens)
    mask[1, length // 2 :] = 0
    return (tokens * mask, mask)


def _mels(chance: torch.Generator, tiny: bool) -> Call:
    return (torch.rand(2, *((12, 6) if tiny else (160, 40)), generator=chance),)


def _pair(chance: torch.Generator, tiny: bool) -> Call:
    del tiny
    return (torch.randn(2, 3, 16, 16, generator=chance), torch.randn(2, 3, 16, 16, generator=chance))


def _both(chance: torch.Generator, tiny: bool) -> list[Call]:
    del tiny
    x = torch.rand(2, 3, 16, 16, generator=chance)
    return [(x,), (-x, 2)]


def _dict(chance: torch.Generator, tiny: bool) -> Call:
    del tiny
    tokens = torch.randint(0, 16, (2, 5), generator=chance)
    return ({"image": torch.randn(2, 3, 16, 16, generator=chance), "tokens": tokens},)


def _tokens(chance: torch.Generator, tiny: bool) -> Call:
    del tiny
    return (torch.randint(0, 32, (2, 6), generator=chance),)


def _signal(chance: torch.Generator, tiny: bool) -> Call:
    del tiny
    return (torch.randn(2, 4, 20, generator=chance),)


def _small(
    name: str, make: Callable[[], nn.Module], call: Callable[[torch.Generator, bool], Call], **more: Any
) -> Entry:
    """An entry of one size."""
    return Entry(name, make, make, call, **more)


ZOO: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("resnet18", ResNet, lambda: ResNet((1, 1, 1, 1), 8, 10), _images(3, 224, 32)),
        Entry("mobilenet_v2", MobileNetV2, lambda: MobileNetV2(TINY_STAGES, 8, 32, 10), _images(3, 224, 32)),
        Entry("minilm", MiniLM, lambda: MiniLM(TINY_SIZES), _sentences),
        Entry("torch_minilm", TorchMiniLM, lambda: TorchMiniLM(TINY_SIZES), _sentences),
        Entry("digit_cnn", DigitCNN, lambda: DigitCNN(4, 16), _images(1, 28, 28)),
        Entry(
            "speaker",
            SpeakerEncoder,
            lambda: SpeakerEncoder(6, 8, 2),
            _mels,
            compiles=False,
            why="torch.compile(fullgraph=True) refuses nn.LSTM",
        ),
        _small(
            "branching",
            Branching,
            lambda chance, tiny: _both(chance, tiny)[0],
            branches=_both,
            compiles=False,
            exports=False,
            why="a branch that depends on data is no graph",
        ),
        _small("detector", Detector, _dict),
        _small("padded", PaddedNet, _images(3, 16, 16)),
        _small("called_twice", CalledTwice, _pair),
        _small("tied", Tied, _tokens),
        _small("weight_norm", Normed, _signal),
        _small("late_norm", Late, _images(1, 16, 16)),
        _small("uneven", Uneven, _images(3, 17, 17)),
        _small("decoder", Decoder, _images(3, 16, 16)),
    )
}


def tiny_mobilenet_v2() -> nn.Module:
    """A factory for those that take one by name."""
    return ZOO["mobilenet_v2"].build()
