"""How every public layer is made and called: a new layer adds one line here, and all checks run over it."""

import copy
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import bitwright.nn as qnn
from bitwright import quantizers
from bitwright.qcore import QuantizerError, values_of
from bitwright.quantizers import Int8Act, Int8WeightPerTensor, Int32Bias

# Quantizers

FRAGMENTS = {"BiasBase", "IntBase", "PerGroup", "PerOutputChannel", "PowerOfTwo", "Shifted", "of_width"}
QUANTIZERS = {name: getattr(quantizers, name) for name in quantizers.__all__ if name not in FRAGMENTS}
WEIGHTS = {name: each for name, each in QUANTIZERS.items() if "Weight" in name}
ACTS = {name: each for name, each in QUANTIZERS.items() if "Act" in name}
BIASES = {name: each for name, each in QUANTIZERS.items() if "Bias" in name}
FITTING = {"weight": WEIGHTS, "activation": ACTS, "bias": BIASES}
USUAL = {"weight": Int8WeightPerTensor, "activation": Int8Act, "bias": Int32Bias}


def families(of: Mapping[str, Any]) -> dict[str, Any]:
    """One quantizer for each name without its bit width: they differ in nothing else."""
    return {re.sub(r"\d+", "", name): each for name, each in of.items()}


# Layers

Randn = Callable[..., Tensor]


class Example(NamedTuple):
    """How a layer is made and called.

    Args:
        arguments: torch's, by position.
        inputs: the arguments of forward, out of a function that makes random tensors of a shape.
        keywords: more of torch's arguments.
        twin: makes what the layer equals without quantizers, where that isn't the torch layer it stands for.
        exact: whether it equals that to the bit.
        full: the keywords that fill every slot, where they aren't the usual quantizers.
        carries: whether its output can be a `QuantTensor` once every slot is filled.
        needs: keywords without which it computes nothing: it has no float form.
    """

    arguments: tuple[Any, ...]
    inputs: Callable[[Randn], tuple[Any, ...]]
    keywords: Mapping[str, Any] = {}
    twin: Callable[[], Callable[..., Any]] | None = None
    exact: bool = True
    full: Mapping[str, Any] | None = None
    carries: bool = True
    needs: Mapping[str, Any] = {}


OPERANDS = {"act_quant": Int8Act, "input_quant": Int8Act}
ELEMENTWISE = Example((), lambda randn: (randn(3, 4, 5),))
TOKENS = Example((8, 2), lambda randn: (randn(5, 3, 8), randn(6, 3, 8), randn(6, 3, 8)), exact=False)


def image(*arguments: Any, **keywords: Any) -> Callable[[int], Example]:
    """An example for each number of spatial dimensions, of six channels and five pixels along each."""
    return lambda dims: Example(arguments, lambda randn: (randn(2, 6, *[5] * dims),), **keywords)


def operands(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Example:
    """The example of a function that is a layer."""
    return Example((), lambda randn: tuple(randn(*each) for each in shapes), twin=lambda: function, full=OPERANDS)


def rows(randn: Randn) -> tuple[Tensor]:
    """Numbers of rows of a table."""
    return (randn(3, 5).abs().mul(3).long().clamp(max=6),)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    nn.LSTM(2, 2, proj_size=1)(torch.zeros(1, 1, 2))  # torch warns, once in a process, that another kernel is used

BY_DIMENSIONS: dict[str, Callable[[int], Example]] = {
    "QuantAdaptiveAvgPool": image(2),
    "QuantAdaptiveMaxPool": image(2),
    "QuantAvgPool": image(2),
    "QuantBatchNorm": image(6),
    "QuantConv": image(6, 4, 3),
    "QuantConvTranspose": image(6, 4, 3),
    "QuantDropout": image(0.3),
    "QuantMaxPool": image(2),
}

EXAMPLES: dict[str, Example] = {
    **{f"{name}{dims}d": of(dims) for name, of in BY_DIMENSIONS.items() for dims in (1, 2, 3)},
    "QuantAdd": operands(torch.add, (3, 4), (3, 4)),
    "QuantCELU": ELEMENTWISE,
    "QuantCat": Example((), lambda randn: ([randn(2, 4), randn(3, 4)],), twin=lambda: torch.cat, full=OPERANDS),
    "QuantDropout": ELEMENTWISE,
    "QuantELU": ELEMENTWISE,
    "QuantEmbedding": Example((7, 4), rows),
    "QuantEmbeddingBag": Example((7, 4), rows),
    "QuantFunction": Example(
        (torch.add,), lambda randn: (randn(3, 4), randn(3, 4)), twin=lambda: torch.add, full=OPERANDS
    ),
    "QuantGELU": ELEMENTWISE,
    "QuantGRU": Example((4, 3, 2), lambda randn: (randn(5, 2, 4),)),
    "QuantGRUCell": Example((4, 3), lambda randn: (randn(2, 4), randn(2, 3))),
    "QuantGroupNorm": Example((2, 6), lambda randn: (randn(3, 6, 4),)),
    "QuantHadamardClassifier": Example((6, 4), lambda randn: (randn(3, 6),)),
    "QuantHardSwish": ELEMENTWISE,
    "QuantHardTanh": ELEMENTWISE,
    "QuantHardsigmoid": ELEMENTWISE,
    "QuantIdentity": ELEMENTWISE,
    "QuantLSTM": Example((4, 3, 2), lambda randn: (randn(5, 2, 4),), {"proj_size": 2}),
    "QuantLSTMCell": Example((4, 3), lambda randn: (randn(2, 4), (randn(2, 3), randn(2, 3)))),
    "QuantLayerNorm": Example((5,), lambda randn: (randn(3, 4, 5),)),
    "QuantLeakyReLU": ELEMENTWISE,
    "QuantLinear": Example((6, 4), lambda randn: (randn(3, 6),)),
    "QuantLogSigmoid": ELEMENTWISE,
    "QuantLogSoftmax": Example((-1,), lambda randn: (randn(3, 4, 5),)),
    "QuantMatmul": operands(torch.matmul, (3, 4), (4, 5)),
    "QuantMish": ELEMENTWISE,
    "QuantMul": operands(torch.mul, (3, 4), (3, 4)),
    "QuantMultiheadAttention": TOKENS,
    "QuantRMSNorm": Example((5,), lambda randn: (randn(3, 4, 5),)),
    "QuantRNN": Example((4, 3, 2), lambda randn: (randn(5, 2, 4),)),
    "QuantRNNCell": Example((4, 3), lambda randn: (randn(2, 4), randn(2, 3))),
    "QuantReLU": ELEMENTWISE,
    "QuantReLU6": ELEMENTWISE,
    "QuantSELU": ELEMENTWISE,
    "QuantScaleBias": Example((4,), lambda randn: (randn(3, 4, 5),)),
    "QuantScaledDotProductAttention": Example(
        (),
        lambda randn: (randn(2, 2, 5, 4), randn(2, 2, 6, 4), randn(2, 2, 6, 4)),
        twin=lambda: nn.functional.scaled_dot_product_attention,
        exact=False,
    ),
    "QuantSiLU": ELEMENTWISE,
    "QuantSigmoid": ELEMENTWISE,
    "QuantSoftmax": Example((-1,), lambda randn: (randn(3, 4, 5),)),
    "QuantSoftplus": ELEMENTWISE,
    "QuantTanh": ELEMENTWISE,
    "QuantTransformerDecoderLayer": Example((8, 2, 16), lambda randn: (randn(5, 3, 8), randn(6, 3, 8)), exact=False),
    "QuantTransformerEncoderLayer": Example((8, 2, 16), lambda randn: (randn(5, 3, 8),), exact=False),
    "QuantUpsample": Example((), lambda randn: (randn(2, 3, 4, 4),), {"scale_factor": 2}),
    "QuantUpsamplingBilinear2d": Example((), lambda randn: (randn(2, 3, 4, 4),), {"scale_factor": 2}),
    "QuantUpsamplingNearest2d": Example((), lambda randn: (randn(2, 3, 4, 4),), {"scale_factor": 2}),
    "TruncAdaptiveAvgPool2d": Example((2,), lambda randn: (randn(2, 6, 4, 4),), needs={"input_quant": Int8Act}),
    "TruncAvgPool2d": Example((2,), lambda randn: (randn(2, 6, 4, 4),), needs={"input_quant": Int8Act}),
}

BASES = {"ActivationLayer", "QuantLayer", "WeightLayer"}  # they compute nothing by themselves


def public_layers() -> dict[str, type[qnn.QuantLayer]]:
    """The layers of `bitwright.nn` by name, those with several names once."""
    found = [getattr(qnn, name) for name in qnn.__all__ if name not in BASES]
    return {each.__name__: each for each in found if isinstance(each, type) and issubclass(each, qnn.QuantLayer)}


LAYERS = public_layers()
WEIGHT_LAYERS = {name: each for name, each in LAYERS.items() if issubclass(each, (nn.Linear, nn.modules.conv._ConvNd))}
ACT_LAYERS = {
    name: each
    for name, each in LAYERS.items()
    if issubclass(each, qnn.ActivationLayer) and not issubclass(each, nn.modules.dropout._DropoutNd)  # by chance
}


def example_of(layer: type[qnn.QuantLayer]) -> Example:
    """The example of a layer."""
    return EXAMPLES[layer.__name__]


def made(layer: type[qnn.QuantLayer], **keywords: Any) -> Any:
    """A layer with the parameters that torch gives it first thing."""
    torch.manual_seed(0)
    example = example_of(layer)
    return layer(*example.arguments, **example.keywords, **{**example.needs, **keywords})


def floats(layer: type[qnn.QuantLayer]) -> dict[str, None]:
    """Keywords that leave everything float."""
    return dict.fromkeys(full(layer))


def full(layer: type[qnn.QuantLayer]) -> dict[str, Any]:
    """Keywords that fill every slot."""
    given = example_of(layer).full
    return {f"{slot.name}_quant": USUAL[slot.role] for slot in layer.slots} if given is None else dict(given)


def warm(module: Any, *inputs: Any) -> Any:
    """A layer that saw a batch in training."""
    training = module.training
    module.train()(*(inputs or inputs_of(module)))
    return module.train(training)


def inputs_of(layer: Any, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Any, ...]:
    """What a layer is called with."""
    generator = torch.Generator().manual_seed(seed)
    cls = layer if isinstance(layer, type) else type(layer)
    return example_of(cls).inputs(lambda *shape: torch.randn(shape, generator=generator).to(dtype))


def input_of(layer: Any, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """The first input."""
    return inputs_of(layer, dtype, seed)[0]


def mapped(function: Callable[[Tensor], Any], inputs: Any) -> Any:
    """Inputs with a function applied to every floating-point tensor."""
    return pytree.tree_map(
        lambda each: function(each) if isinstance(each, Tensor) and each.is_floating_point() else each, inputs
    )


def tensors_of(out: Any) -> list[Tensor]:
    """The tensors in a result, as they are."""
    return [each for each in pytree.tree_leaves(out) if isinstance(each, Tensor)]


def values(out: Any) -> list[Tensor]:
    """The plain tensors in a result."""
    return [values_of(each) for each in tensors_of(out)]


def class_of_torch(layer: type[qnn.QuantLayer]) -> type[nn.Module] | None:
    """The class of torch that a layer stands for; None where it stands for a function, or for nothing in torch."""
    stands_for = getattr(layer, "stands_for", None)
    if stands_for is not None:
        return stands_for
    bases = (base for base in layer.__mro__ if base.__module__.startswith("torch.nn") and base is not nn.Module)
    return next(bases, None)


def twin_of(layer: type[qnn.QuantLayer]) -> Callable[..., Any] | None:
    """What a layer is without quantizers: one of torch's, with the parameters that torch gives it, or a function."""
    example, torchs = example_of(layer), class_of_torch(layer)
    torch.manual_seed(0)
    if example.twin is not None:
        return example.twin()
    return None if torchs is None else torchs(*example.arguments, **example.keywords)


def same(ones: Any, others: Any, exact: bool = True) -> None:
    """Two results are equal, to the bit or to float tolerance."""
    ones, others = values(ones), values(others)
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert one.dtype == other.dtype
        if exact:
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other)


def seeded(module: Callable[..., Any], *inputs: Any) -> Any:
    """The result of a call that may use random numbers."""
    torch.manual_seed(1)
    return module(*inputs)


def copied(module: nn.Module) -> Any:
    """A deep copy."""
    return copy.deepcopy(module)


def slots_by_role(layer: type[qnn.QuantLayer]) -> Iterator[tuple[str, str]]:
    """The names of a layer's slots, or families of slots, and what they are for."""
    for slot in layer.slots:
        yield slot.name, slot.role


def refused(make: Callable[[], Any]) -> str:
    """Why something is refused; "" if it isn't."""
    try:
        make()
    except QuantizerError as error:
        return str(error)
    return ""


def parameters_of(function: Any) -> list[inspect.Parameter]:
    """The parameters of a signature, but for self."""
    found = list(inspect.signature(function).parameters.values())
    return found[1:] if found and found[0].name == "self" else found
