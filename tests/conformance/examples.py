"""How every public layer is made and called: a new layer adds one line here, and all checks run over it."""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import bitwright.nn as qnn
from bitwright.nn import Slot
from bitwright.qcore import QuantizerError, resolve, values_of
from bitwright.quantizers import Int8Act, Int8BiasOwnScale, Int8Grad, Int8WeightPerTensor, Int32Bias
from tests.quantizers.shipped import ALONE as QUANTIZERS
from tests.quantizers.shipped import USUAL as INTEGERS
from tests.quantizers.shipped import families, role

# Quantizers

WEIGHTS, ACTS, BIASES = (
    {name: each for name, each in QUANTIZERS.items() if role(name) == wanted}
    for wanted in ("weight", "activation", "bias")
)
USUAL = {"weight": Int8WeightPerTensor, "activation": Int8Act, "bias": Int32Bias, "gradient": Int8Grad}


def kinds(of: Mapping[str, Any]) -> dict[str, Any]:
    """One quantizer for each combination of parts: levels, granularity, scaling, restriction, zero point, transform."""
    found: dict[tuple[object, ...], str] = {}
    for name, each in of.items():
        quant = resolve(each, {"channel_axis": 0, "channels": 4, "shape": (4, 8)})
        scaling = getattr(quant, "scaling", None)
        parts = (
            *(getattr(quant, part, None) for part in ("number_format", "granularity", "zero_point", "transform")),
            getattr(scaling, "restriction", None),
        )
        found.setdefault((type(quant), type(scaling), *map(type, parts)), name)
    return {name: of[name] for name in found.values()}


KINDS = kinds(QUANTIZERS)
FEW = {  # what every slot of every layer is tried with
    **families(INTEGERS),
    **{name: QUANTIZERS[name] for name in ("Fp8e4m3WeightPerChannel", "MXFloat4e2m1Weight", "BinaryWeightPerTensor")},
    **{name: QUANTIZERS[name] for name in ("Fp8e4m3Act", "NVFloat4Act", "Int8DynamicActPerToken")},
}
FITTING = {
    wanted: {name: each for name, each in FEW.items() if role(name) == wanted}
    for wanted in ("weight", "activation", "bias")
} | {"gradient": {"Int8Grad": Int8Grad}}


# Layers

Randn = Callable[..., Tensor]


def widely(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function that torch has not for half precision, computed in float32 there."""
    return lambda x: function(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)


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
    """

    arguments: tuple[Any, ...]
    inputs: Callable[[Randn], tuple[Any, ...]]
    keywords: Mapping[str, Any] = {}
    twin: Callable[[], Callable[..., Any]] | None = None
    exact: bool = True
    full: Mapping[str, Any] | None = None
    carries: bool = True


OPERANDS = {"act_quant": Int8Act, "input_quant": Int8Act}


def indices(randn: Randn, *shape: int) -> Tensor:
    """Rows of a table of 7."""
    return (randn(*shape).abs() * 100).long() % 7


OWN_BIAS = {
    "weight_quant": Int8WeightPerTensor,
    "bias_quant": Int8BiasOwnScale,
    "input_quant": Int8Act,
    "output_quant": Int8Act,
}
ELEMENTWISE = Example((), lambda randn: (randn(3, 4, 5),))

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    nn.LSTM(2, 2, proj_size=1)(torch.zeros(1, 1, 2))  # torch warns, once in a process, that another kernel is used

EXAMPLES: dict[str, Example] = {
    "QuantBatchNorm1d": Example((6,), lambda randn: (randn(3, 6, 5),), exact=False),
    "QuantBatchNorm2d": Example((6,), lambda randn: (randn(2, 6, 5, 4),), exact=False),
    "QuantBatchNorm3d": Example((6,), lambda randn: (randn(2, 6, 3, 4, 2),), exact=False),
    "QuantAdaptiveAvgPool1d": Example((2,), lambda randn: (randn(2, 3, 8),)),
    "QuantAdaptiveAvgPool2d": Example((2,), lambda randn: (randn(2, 3, 8, 8),)),
    "QuantAdaptiveAvgPool3d": Example((2,), lambda randn: (randn(2, 3, 6, 6, 6),)),
    "QuantAdaptiveMaxPool1d": Example((2,), lambda randn: (randn(2, 3, 8),)),
    "QuantAdaptiveMaxPool2d": Example((2,), lambda randn: (randn(2, 3, 8, 8),)),
    "QuantAdaptiveMaxPool3d": Example((2,), lambda randn: (randn(2, 3, 6, 6, 6),)),
    "QuantAdd": Example((), lambda randn: (randn(3, 4), randn(3, 4)), twin=lambda: torch.add, full=OPERANDS),
    "QuantAvgPool1d": Example((2,), lambda randn: (randn(2, 3, 8),)),
    "QuantAvgPool2d": Example((2,), lambda randn: (randn(2, 3, 8, 8),)),
    "QuantAvgPool3d": Example((2,), lambda randn: (randn(2, 3, 6, 6, 6),), twin=lambda: widely(nn.AvgPool3d(2))),
    "QuantCELU": ELEMENTWISE,
    "QuantCat": Example((), lambda randn: ([randn(3, 4), randn(2, 4)],), twin=lambda: torch.cat, full=OPERANDS),
    "QuantConv1d": Example((6, 4, 3), lambda randn: (randn(2, 6, 5),)),
    "QuantConv2d": Example((6, 4, 3), lambda randn: (randn(2, 6, 5, 5),)),
    "QuantConv3d": Example((6, 4, 3), lambda randn: (randn(2, 6, 5, 5, 5),)),
    "QuantConvTranspose1d": Example((6, 4, 3), lambda randn: (randn(2, 6, 5),)),
    "QuantConvTranspose2d": Example((6, 4, 3), lambda randn: (randn(2, 6, 5, 5),)),
    "QuantConvTranspose3d": Example((6, 4, 3), lambda randn: (randn(2, 6, 5, 5, 5),)),
    "QuantDropout": Example((0.0,), lambda randn: (randn(3, 4, 5),)),
    "QuantDropout1d": Example((0.0,), lambda randn: (randn(2, 3, 8),)),
    "QuantDropout2d": Example((0.0,), lambda randn: (randn(2, 3, 8, 8),)),
    "QuantDropout3d": Example((0.0,), lambda randn: (randn(2, 3, 6, 6, 6),)),
    "QuantEmbedding": Example((7, 6), lambda randn: (indices(randn, 3, 4),)),
    "QuantEmbeddingBag": Example((7, 6), lambda randn: (indices(randn, 3, 4),)),
    "QuantELU": ELEMENTWISE,
    "QuantFunction": Example(
        (torch.add,), lambda randn: (randn(3, 4), randn(3, 4)), twin=lambda: torch.add, full=OPERANDS
    ),
    "QuantGELU": ELEMENTWISE,
    "QuantGRU": Example((4, 3, 2), lambda randn: (randn(5, 2, 4),)),
    "QuantGRUCell": Example((4, 3), lambda randn: (randn(2, 4), randn(2, 3))),
    "QuantGroupNorm": Example((2, 6), lambda randn: (randn(3, 6, 5),), full=OWN_BIAS),
    "QuantHadamardClassifier": Example((6, 4), lambda randn: (randn(3, 6),)),
    "QuantHardSwish": ELEMENTWISE,
    "QuantHardTanh": ELEMENTWISE,
    "QuantHardsigmoid": ELEMENTWISE,
    "QuantIdentity": ELEMENTWISE,
    "QuantLayerNorm": Example((6,), lambda randn: (randn(3, 6),), full=OWN_BIAS),
    "QuantLeakyReLU": ELEMENTWISE,
    "QuantLSTM": Example((4, 3, 2), lambda randn: (randn(5, 2, 4),), {"proj_size": 2}),
    "QuantLSTMCell": Example((4, 3), lambda randn: (randn(2, 4), (randn(2, 3), randn(2, 3)))),
    "QuantLinear": Example((6, 4), lambda randn: (randn(3, 6),)),
    "QuantRNN": Example((4, 3, 2), lambda randn: (randn(5, 2, 4),)),
    "QuantRNNCell": Example((4, 3), lambda randn: (randn(2, 4), randn(2, 3))),
    "QuantMultiheadAttention": Example(
        (8, 2), lambda randn: (randn(5, 3, 8), randn(6, 3, 8), randn(6, 3, 8)), exact=False
    ),
    "QuantPReLU": Example((4,), lambda randn: (randn(3, 4, 5),)),
    "QuantRMSNorm": Example((6,), lambda randn: (randn(3, 6),)),
    "QuantReLU": ELEMENTWISE,
    "QuantReLU6": ELEMENTWISE,
    "QuantScaledDotProductAttention": Example(
        (),
        lambda randn: (randn(2, 2, 5, 4), randn(2, 2, 6, 4), randn(2, 2, 6, 4)),
        twin=lambda: nn.functional.scaled_dot_product_attention,
        exact=False,
    ),
    "QuantScaleBias": Example((6,), lambda randn: (randn(3, 6, 5),)),
    "QuantLogSigmoid": ELEMENTWISE,
    "QuantLogSoftmax": Example((-1,), lambda randn: (randn(3, 4, 5),)),
    "QuantMatmul": Example((), lambda randn: (randn(3, 4), randn(4, 3)), twin=lambda: torch.matmul, full=OPERANDS),
    "QuantMaxPool1d": Example((2,), lambda randn: (randn(2, 3, 8),)),
    "QuantMaxPool2d": Example((2,), lambda randn: (randn(2, 3, 8, 8),)),
    "QuantMaxPool3d": Example((2,), lambda randn: (randn(2, 3, 6, 6, 6),)),
    "QuantMish": ELEMENTWISE,
    "QuantMul": Example((), lambda randn: (randn(3, 4), randn(3, 4)), twin=lambda: torch.mul, full=OPERANDS),
    "QuantSELU": ELEMENTWISE,
    "QuantSiLU": ELEMENTWISE,
    "QuantSigmoid": ELEMENTWISE,
    "QuantSoftmax": Example((-1,), lambda randn: (randn(3, 4, 5),)),
    "QuantSoftplus": ELEMENTWISE,
    "QuantTanh": ELEMENTWISE,
    "QuantTransformerDecoderLayer": Example(
        (8, 2, 16), lambda randn: (randn(5, 3, 8), randn(6, 3, 8)), {"dropout": 0.0}, exact=False
    ),
    "QuantTransformerEncoderLayer": Example((8, 2, 16), lambda randn: (randn(5, 3, 8),), {"dropout": 0.0}, exact=False),
    "QuantUpsample": Example((None, 2), lambda randn: (randn(2, 3, 4, 4),)),
    "QuantUpsamplingBilinear2d": Example((None, 2), lambda randn: (randn(2, 3, 4, 4),)),
    "QuantUpsamplingNearest2d": Example((None, 2), lambda randn: (randn(2, 3, 4, 4),)),
    "TruncAdaptiveAvgPool2d": Example((2,), lambda randn: (randn(2, 3, 8, 8),)),
    "TruncAvgPool2d": Example((2,), lambda randn: (randn(2, 3, 8, 8),)),
}

ON_INTEGERS = {"TruncAdaptiveAvgPool2d", "TruncAvgPool2d"}  # they round on the grid of their input
BASES = {"ActivationLayer", "QuantLayer", "WeightLayer"}  # they compute nothing by themselves


def public_layers() -> dict[str, type[qnn.QuantLayer]]:
    """The layers of `bitwright.nn` by name, those with several names once."""
    found = [getattr(qnn, name) for name in qnn.__all__ if name not in BASES]
    return {each.__name__: each for each in found if isinstance(each, type) and issubclass(each, qnn.QuantLayer)}


PRODUCTS = (nn.Linear, nn.modules.conv._ConvNd)
LAYERS = public_layers()
WEIGHT_LAYERS = {  # whose outputs are sums of products
    name: each for name, each in LAYERS.items() if issubclass(each, qnn.WeightLayer) and issubclass(each, PRODUCTS)
}
ACT_LAYERS = {name: each for name, each in LAYERS.items() if issubclass(each, qnn.ActivationLayer)}


def example_of(layer: type[qnn.QuantLayer]) -> Example:
    """The example of a layer."""
    return EXAMPLES[layer.__name__]


def made(layer: type[qnn.QuantLayer], **keywords: Any) -> Any:
    """A layer with the parameters that torch gives it first thing."""
    torch.manual_seed(0)
    example = example_of(layer)
    return layer(*example.arguments, **example.keywords, **keywords)


def floats(layer: type[qnn.QuantLayer]) -> dict[str, None]:
    """Keywords that leave everything float."""
    return {f"{slot.name}_quant": None for slot in layer.slots}


def full(layer: type[qnn.QuantLayer]) -> dict[str, Any]:
    """Keywords that fill every slot of what flows forward."""
    given = example_of(layer).full
    slots = [slot for slot in layer.slots if not slot.backward]
    return {f"{slot.name}_quant": USUAL[slot.role] for slot in slots} if given is None else dict(given)


def filling(layer: type[qnn.QuantLayer], slot: Slot) -> dict[str, Any]:
    """Keywords that fill every slot of what flows forward, and this one."""
    return {**full(layer), **({f"{slot.name}_quant": USUAL[slot.role]} if slot.backward else {})}


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
