"""What it costs to have a layer: construction, modules, import."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from torch import nn

from .layers import Layers, Scheme
from .libraries import layers_of
from .timing import Timed
from .workload import Workload, absolute, difference

__all__ = ["CONSTRUCTING"]

Make = Callable[[Layers], nn.Module]

ROOT = Path(__file__).parents[1]

IMPORTS = {
    "float": "torch",
    "bitwright": "torch, bitwright.nn",
    "torch.ao": "torch, torch.ao.quantization",
    "torchao": "torch, torchao.quantization.qat",
    "Brevitas": "torch, brevitas.nn",
}


def conv(layers: Layers) -> nn.Module:
    """A convolution with quantized weight, bias and input."""
    return layers.conv(64, 64, 3, input_quant=True)


def linear(layers: Layers) -> nn.Module:
    """A linear layer with a quantized weight."""
    return layers.linear(64, 64)


def relu(layers: Layers) -> nn.Module:
    """An activation layer."""
    return layers.relu()


def encoder_linears(layers: Layers) -> nn.Module:
    """The linear layers of a transformer encoder: 12 blocks of width 768, 6 layers each."""
    shapes = [*[(768, 768)] * 4, (768, 3072), (3072, 768)]
    quantized = layers.scheme.act_bits is not None
    return nn.ModuleList(
        nn.ModuleList(layers.linear(*shape, input_quant=quantized) for shape in shapes) for _ in range(12)
    )


@contextlib.contextmanager
def without_initialisation() -> Iterator[None]:
    """Leave weights uninitialised: random numbers dominate the time of building a large layer."""
    original = nn.Linear.reset_parameters
    nn.Linear.reset_parameters = lambda self: None
    try:
        yield
    finally:
        nn.Linear.reset_parameters = original


def construction(make: Make, scheme: Scheme, library: str) -> Callable[[], float]:
    """Times a constructor."""
    return Timed(partial(make, layers_of(library, scheme)))


def bare_construction(make: Make, scheme: Scheme, library: str) -> Callable[[], float]:
    """Times a constructor, initialisation skipped."""
    layers = layers_of(library, scheme)

    def construct() -> None:
        with without_initialisation():
            make(layers)

    return Timed(construct)


def modules(make: Make, scheme: Scheme, library: str) -> Callable[[], float]:
    """Counts modules."""
    return lambda: sum(1 for _ in make(layers_of(library, scheme)).modules())


def first_model(scheme: Scheme, library: str) -> Callable[[], float]:
    """Times the first model that a process builds: CPU seconds of MobileNetV2's constructor, weights left empty."""
    code = f"""
import gc
import time
from torch.nn import init
from benchmarks.layers import Scheme
from benchmarks.libraries import layers_of
from benchmarks.models import MobileNetV2

for name in ("kaiming_uniform_", "uniform_"):
    setattr(init, name, lambda tensor, *args, **kwargs: tensor)
layers = layers_of({library!r}, {scheme!r})
gc.disable()  # as in `Timed`: a collection of all that torch has imported takes 90 ms
begun = time.process_time()
MobileNetV2(layers)
print(time.process_time() - begun)
"""

    def built() -> float:
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        return float(ran.stdout.split()[-1])

    built()  # the first one compiles
    return built


def importing(library: str) -> Callable[[], float]:
    """Times an import in its own process: CPU seconds from the start of the interpreter."""
    code = f"import time, {IMPORTS[library]}; print(time.process_time())"

    def imported() -> float:
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return float(ran.stdout.split()[-1])

    imported()  # the first one compiles
    return imported


ALL = ("bitwright", "torch.ao", "Brevitas")
LINEARS = ("bitwright", "torch.ao", "torchao", "Brevitas")
W8, W8A8 = Scheme(8), Scheme(8, 8)
W8A8B32 = Scheme(8, 8, int_bias=True)
ENCODER = "the 72 linears of a 12-layer encoder"

CONSTRUCTING = {
    "construct-conv": Workload(
        "construct Conv2d(64, 64, 3) with weight, bias and input quantizers",
        ALL,
        partial(construction, conv, W8A8B32),
    ),
    "construct-relu": Workload(
        "construct an activation layer",
        ALL,
        partial(construction, relu, W8A8),
        compare=absolute,
        unit="ms",
        scale=1e3,
    ),
    "construct-linears": Workload(
        f"construct {ENCODER}, W8, initialisation skipped", LINEARS, partial(bare_construction, encoder_linears, W8)
    ),
    "construct-linears-w8a8": Workload(
        f"construct {ENCODER}, W8A8, initialisation skipped",
        LINEARS,
        partial(bare_construction, encoder_linears, W8A8),
    ),
    "construct-first": Workload(
        "construct the first model of a process, MobileNetV2, W8A8, beyond float",
        ALL,
        partial(first_model, W8A8),
        compare=difference,
        unit="ms",
        scale=1e3,
    ),
    "modules-linear": Workload(
        "modules in a quantized linear layer",
        LINEARS,
        partial(modules, linear, W8),
        compare=absolute,
        unit="modules",
        repeats=False,
    ),
    "modules-relu": Workload(
        "modules in an activation layer",
        ALL,
        partial(modules, relu, W8A8),
        compare=absolute,
        unit="modules",
        repeats=False,
    ),
    "import": Workload("import, beyond torch", LINEARS, importing, compare=difference, unit="s"),
}
