"""What each kind of layer costs, in numbers that no clock is needed for: they are the same on every machine.

A change that makes a layer dearer, or cheaper, fails here. If it was meant, put the new table into this file:

    python -m tests.test_cost
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import bitwright.nn as qnn
from bitwright.qcore import values_of
from bitwright.quantizers import Int8WeightPerChannel, Int32Bias

# nodes: of autograd, leaves aside. saved: bytes that they keep for backward, the input and the parameters aside: those
# are alive anyway. forward, backward (in training), evaluation: operations of aten, as they are dispatched. The input
# is float32: 4 x 64, or 4 x 8 x 8 x 8 for convolutions.
COSTS = """
                                       modules      nodes      saved    forward   backward evaluation     frozen
nn.Linear                                    1          2          0          2         10          2          2
QuantLinear                                  3          3       8452         14         38         13          2
QuantLinear, detached scale                  3          3       8192         13         10         13          2
QuantLinear, per channel                     3          3       8448         16         28         15          2
QuantLinear, Int32Bias                       4          7       8716         40         42         38          8
QuantLinear, Int32Bias, QuantTensor          4          8       8716         45         42         42         12
nn.Conv2d                                    1          1          0          1          3          1          1
QuantConv2d                                  3          2       2372         13         31         12          1
QuantConv2d, per channel                     3          2       2368         15         21         14          1
QuantConv2d, Int32Bias                       4          6       2444         39         35         37          7
QuantConv2d, Int32Bias, QuantTensor          4          7       2444         44         35         41         11
nn.ReLU                                      1          1       1024          2          4          1          1
QuantReLU, calibrating                       3          1          4         30          4         17          4
QuantReLU, learned                           3          1       1032         10         16         11          4
QuantReLU, learned, QuantTensor              3          2       1032         11         16         11          4
QuantIdentity, calibrating                   3          1          4         28          4         17          4
QuantIdentity, learned                       3          1       1032         10         16         11          4
QuantIdentity, learned, QuantTensor          3          2       1032         11         16         11          4
"""

LINEAR, CONV = (64, 32), (8, 8, 3)
LEARNED, CALIBRATING = {"calibration_steps": 1}, {"calibration_steps": 10**9}
CARRIED = {"return_quant_tensor": True}  # as a QuantTensor
PER_CHANNEL = {"weight_quant": Int8WeightPerChannel}

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "nn.Linear": lambda: nn.Linear(*LINEAR),
    "QuantLinear": lambda: qnn.QuantLinear(*LINEAR),
    "QuantLinear, detached scale": lambda: qnn.QuantLinear(*LINEAR, weight_detach_scale=True),
    "QuantLinear, per channel": lambda: qnn.QuantLinear(*LINEAR, **PER_CHANNEL),
    "QuantLinear, Int32Bias": lambda: qnn.QuantLinear(*LINEAR, bias_quant=Int32Bias),
    "QuantLinear, Int32Bias, QuantTensor": lambda: qnn.QuantLinear(*LINEAR, bias_quant=Int32Bias, **CARRIED),
    "nn.Conv2d": lambda: nn.Conv2d(*CONV),
    "QuantConv2d": lambda: qnn.QuantConv2d(*CONV),
    "QuantConv2d, per channel": lambda: qnn.QuantConv2d(*CONV, **PER_CHANNEL),
    "QuantConv2d, Int32Bias": lambda: qnn.QuantConv2d(*CONV, bias_quant=Int32Bias),
    "QuantConv2d, Int32Bias, QuantTensor": lambda: qnn.QuantConv2d(*CONV, bias_quant=Int32Bias, **CARRIED),
    "nn.ReLU": nn.ReLU,
    "QuantReLU, calibrating": lambda: qnn.QuantReLU(**CALIBRATING),
    "QuantReLU, learned": lambda: qnn.QuantReLU(**LEARNED),
    "QuantReLU, learned, QuantTensor": lambda: qnn.QuantReLU(**LEARNED, **CARRIED),
    "QuantIdentity, calibrating": lambda: qnn.QuantIdentity(**CALIBRATING),
    "QuantIdentity, learned": lambda: qnn.QuantIdentity(**LEARNED),
    "QuantIdentity, learned, QuantTensor": lambda: qnn.QuantIdentity(**LEARNED, **CARRIED),
}


@dataclass(frozen=True)
class Cost:
    """The cost of a layer once it is in its stride: after a first step, a first evaluation."""

    modules: int
    nodes: int
    saved: int
    forward: int
    backward: int
    evaluation: int
    frozen: int


class CountOperations(TorchDispatchMode):
    """Counts the operations that are dispatched within it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(call: Callable[[], object]) -> int:
    with CountOperations() as counter:
        call()
    return counter.count


def nodes(out: Tensor) -> int:
    found, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found and type(node).__name__ != "AccumulateGrad":
            found.add(node)
            todo += [following for following, _ in node.next_functions]
    return len(found)


def saved_bytes(call: Callable[[], Tensor], alive: list[Tensor]) -> int:
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        plain = values_of(tensor.detach())
        kept[plain.untyped_storage().data_ptr()] = plain
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = call()
    assert out.requires_grad
    excluded = {values_of(tensor.detach()).untyped_storage().data_ptr() for tensor in alive}
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in excluded)


def cost(name: str) -> Cost:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    x = torch.randn(4, 8, 8, 8) if "Conv" in name else torch.randn(4, 64)
    if "Int32Bias" in name:  # such a bias needs to know the input's scale
        x = qnn.QuantIdentity(scale=2**-6, return_quant_tensor=True)(x).detach()
    x.requires_grad_()
    wanted = [x, *layer.parameters()]

    def backward(out: Tensor) -> None:
        torch.autograd.grad(values_of(out).sum(), wanted, allow_unused=True)

    backward(layer(x))
    backward(layer(x))
    out = layer(x)
    trained = (nodes(out), saved_bytes(lambda: layer(x), wanted), operations(lambda: layer(x)))
    total = values_of(out).sum()
    step = operations(lambda: torch.autograd.grad(total, wanted, allow_unused=True))
    layer.eval()
    with torch.no_grad():
        layer(x)
        evaluation = operations(lambda: layer(x))
        with qnn.frozen(layer):
            layer(x)
            frozen = operations(lambda: layer(x))
    return Cost(sum(1 for _ in layer.modules()), *trained, step, evaluation, frozen)


def table() -> str:
    """The costs as they are, one line a layer."""
    columns = list(Cost.__dataclass_fields__)
    width = max(map(len, LAYERS))
    lines = [f"{'':{width}}" + "".join(f"{column:>11}" for column in columns)]
    for name in LAYERS:
        lines.append(f"{name:{width}}" + "".join(f"{number:11}" for number in vars(cost(name)).values()))
    return "\n".join(lines)


def stored() -> dict[str, Cost]:
    _, *lines = COSTS.strip("\n").splitlines()
    fields = [line.rsplit(maxsplit=len(Cost.__dataclass_fields__)) for line in lines]
    return {name.strip(): Cost(*map(int, numbers)) for name, *numbers in fields}


@pytest.mark.skipif(Version(torch.__version__) < Version("2.10"), reason="torch 2.9 dispatches more detachments")
@pytest.mark.parametrize("name", LAYERS)
def test_layer_costs_what_is_stored(name):
    assert cost(name) == stored().get(name), "if this was meant: python -m tests.test_cost"


def test_table_has_exactly_the_layers():
    assert list(stored()) == list(LAYERS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
