"""Networks at work: training steps, evaluation, peak memory, the number of graphs."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .layers import CALIBRATING, Scheme
from .libraries import layers_of
from .memory import peak_bytes
from .models import ENCODER, LENET, MLP_512, RESNET18, Network
from .timing import Timed
from .workload import Workload, absolute

__all__ = ["NETWORKS", "evaluated", "trained"]

STEPS = 400  # for the number of graphs: calibration ends after 300
WARM_UP = 3


class Step:
    """A training step. The learning rate is 0: the arithmetic is the same, and the weights do not change."""

    def __init__(self, model: Any, parameters: list[nn.Parameter], network: Network) -> None:
        self.model = model
        self.inputs, self.labels = network.batch()
        self.optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=network.momentum)

    def __call__(self) -> None:
        """Forward, backward and the optimizer's step."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.inputs), self.labels).backward()
        self.optimizer.step()


def trained(network: Network, scheme: Scheme, library: str) -> nn.Module:
    """A network, in training mode, that has seen a batch: after ``calibration_steps=1`` its scales are learned."""
    torch.manual_seed(0)
    model = network.build(layers_of(library, scheme)).train()
    with torch.no_grad():
        model(network.batch()[0])
    return model


def evaluated(network: Network, scheme: Scheme, library: str) -> nn.Module:
    """The same, in evaluation."""
    return layers_of(library, scheme).evaluated(trained(network, scheme, library))


def step_of(network: Network, scheme: Scheme, frozen: bool, compiled: bool, library: str) -> Step:
    """A training step that has run a few times; ``frozen``: the scale of the network's input isn't learned."""
    model = trained(network, scheme, library)
    if frozen:
        model.get_submodule("entry").requires_grad_(False)
    step = Step(torch.compile(model) if compiled else model, list(model.parameters()), network)
    for _ in range(WARM_UP):
        step()
    return step


def training(
    network: Network, scheme: Scheme, library: str, *, frozen: bool = False, compiled: bool = False
) -> Callable[[], float]:
    """Times a training step."""
    return Timed(step_of(network, scheme, frozen, compiled, library))


def evaluation(
    network: Network, scheme: Scheme, library: str, *, compiled: bool = False, frozen: bool = False
) -> Callable[[], float]:
    """Times a forward in evaluation; ``frozen``: inside `qnn.frozen`, after the first batch."""
    model: Any = evaluated(network, scheme, library)
    stack = ExitStack()  # left when the sampler is forgotten
    if frozen:
        stack.enter_context(layers_of(library, scheme).frozen(model))
    model = torch.compile(model) if compiled else model
    inputs = network.batch()[0]

    def forward(stack: ExitStack = stack) -> None:
        with torch.no_grad():
            model(inputs)

    return Timed(forward)


def step_memory(network: Network, scheme: Scheme, library: str) -> Callable[[], float]:
    """Counts the bytes that a step allocates at its peak."""
    step = step_of(network, scheme, False, False, library)

    def measured() -> float:
        step.optimizer.zero_grad()
        return peak_bytes(step)

    return measured


def graphs(network: Network, scheme: Scheme, library: str) -> Callable[[], float]:
    """Counts the graphs that are compiled over 400 training steps from the first, calibration included."""

    def counted() -> float:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = network.build(layers_of(library, scheme)).train()
        count = 0

        def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
            nonlocal count
            count += 1
            return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

        step = Step(torch.compile(model, backend=backend), list(model.parameters()), network)
        for _ in range(STEPS):
            step()
        return count

    return counted


ALL = ("bitwright", "torch.ao", "Brevitas")
LEARNED = ("bitwright", "Brevitas")
OWN = ("bitwright",)  # others keep nothing in evaluation
W4, W4A4 = Scheme(4), Scheme(4, 4)
W4A4B32 = Scheme(4, 4, int_bias=True)
W4A4_CALIBRATING = Scheme(4, 4, calibration_steps=CALIBRATING)
W4A4_DEFAULT = Scheme(4, 4, calibration_steps=300)
W4A4B32_DEFAULT = Scheme(4, 4, int_bias=True, calibration_steps=300)
W8A8 = Scheme(8, 8)
SMALL = Network("LeNet-5, batch 8", LENET.build, (8, 3, 32, 32), 10)

NETWORKS = {
    "lenet-w4-step": Workload("LeNet-5, W4, training step", ALL, partial(training, LENET, W4)),
    "lenet-w4a4-step": Workload("LeNet-5, W4A4, training step", ALL, partial(training, LENET, W4A4)),
    "lenet-w4a4-frozen-step": Workload(
        "LeNet-5, W4A4, training step, the input's scale frozen", ALL, partial(training, LENET, W4A4, frozen=True)
    ),
    "lenet-w4a4b32-step": Workload(
        "LeNet-5, W4A4 + Int32Bias, QuantTensors, training step", LEARNED, partial(training, LENET, W4A4B32)
    ),
    "lenet-w4a4-calibrating-step": Workload(
        "LeNet-5, W4A4, training step while calibrating", ALL, partial(training, LENET, W4A4_CALIBRATING)
    ),
    "lenet-w4-eval": Workload("LeNet-5, W4, evaluation", ALL, partial(evaluation, LENET, W4)),
    "lenet-w4a4-eval": Workload("LeNet-5, W4A4, evaluation", ALL, partial(evaluation, LENET, W4A4)),
    "lenet-w4a4-eval-frozen": Workload(
        "LeNet-5, W4A4, evaluation, `frozen`", OWN, partial(evaluation, LENET, W4A4, frozen=True)
    ),
    "lenet-w4a4b32-eval": Workload(
        "LeNet-5, W4A4 + Int32Bias, QuantTensors, evaluation", LEARNED, partial(evaluation, LENET, W4A4B32)
    ),
    "lenet-w4a4b32-eval-frozen": Workload(
        "LeNet-5, W4A4 + Int32Bias, QuantTensors, evaluation, `frozen`",
        OWN,
        partial(evaluation, LENET, W4A4B32, frozen=True),
    ),
    "resnet-step": Workload("ResNet-18, W4A4, training step", ALL, partial(training, RESNET18, W4A4)),
    "resnet-calibrating-step": Workload(
        "ResNet-18, W4A4, training step while calibrating", ALL, partial(training, RESNET18, W4A4_CALIBRATING)
    ),
    "resnet-memory": Workload(
        "ResNet-18, W4A4, peak memory of a training step",
        ALL,
        partial(step_memory, RESNET18, W4A4),
        compare=absolute,
        unit="MB",
        scale=1e-6,
        repeats=False,
    ),
    "resnet-eval": Workload("ResNet-18, W4A4, evaluation", ALL, partial(evaluation, RESNET18, W4A4)),
    "resnet-eval-frozen": Workload(
        "ResNet-18, W4A4, evaluation, `frozen`", OWN, partial(evaluation, RESNET18, W4A4, frozen=True)
    ),
    "mlp-step": Workload("MLP 3 x 512, W4A4, training step", (*ALL, "torchao"), partial(training, MLP_512, W4A4)),
    "encoder-step": Workload(
        "12-layer encoder, W8A8, training step", (*ALL, "torchao"), partial(training, ENCODER, W8A8)
    ),
    "encoder-eval": Workload(
        "12-layer encoder, W8A8, evaluation", (*ALL, "torchao"), partial(evaluation, ENCODER, W8A8)
    ),
    "lenet-step-compiled": Workload(
        "LeNet-5, W4A4, training step, compiled", LEARNED, partial(training, LENET, W4A4, compiled=True)
    ),
    "lenet-eval-compiled": Workload(
        "LeNet-5, W4A4, evaluation, compiled", LEARNED, partial(evaluation, LENET, W4A4, compiled=True)
    ),
    "resnet-step-compiled": Workload(
        "ResNet-18, W4A4, training step, compiled", LEARNED, partial(training, RESNET18, W4A4, compiled=True)
    ),
    "graphs-quant-tensors": Workload(
        f"graphs over {STEPS} training steps of LeNet-5, W4A4 + Int32Bias, QuantTensors",
        LEARNED,
        partial(graphs, SMALL, W4A4B32_DEFAULT),
        compare=absolute,
        unit="graphs",
        repeats=False,
    ),
    "graphs": Workload(
        f"graphs over {STEPS} training steps of LeNet-5, W4A4",
        LEARNED,
        partial(graphs, SMALL, W4A4_DEFAULT),
        compare=absolute,
        unit="graphs",
        repeats=False,
    ),
}
