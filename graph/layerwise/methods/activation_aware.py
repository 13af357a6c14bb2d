"""AWQ: channels that see large activations get finer weights, by scales that the layers before undo."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor, nn

from ....nn.contexts.intercepting import intercepted, quantizers_of
from ....qcore import Grid, TensorQuant
from ....qcore.models import require_model
from ....qcore.tensor_quant import Intercept
from ...errors import GraphError
from ...measuring.batches import batches_of
from ...passes.models import example_of
from ...passes.reports import listed
from ..reports import LayerwiseReport
from ..walking.sites import sites_of
from ..walking.walk import walk_blocks
from .channel_groups import ChannelGroups
from .channel_search import ChannelSearch
from .layers import why_no_product

__all__ = ["awq"]


def awq(
    model: nn.Module,
    data: object,
    *,
    clip: bool = True,
    duo_scaling: bool = False,
    skip: Iterable[str] = (),
    blocks: Sequence[str] | None = None,
    mask: str | None = "attention_mask",
    rows: int | None = None,
    wait_on: str | Path = "device",
    progress: bool = True,
) -> LayerwiseReport:
    """AWQ: multiply the weights of input channels that see large activations, which quantizes them more finely.

    What writes these channels is divided by the same scales: a norm before the layers, or the rows of a layer before,
    as `smooth` does; so the float model computes what it did. Layers that read one tensor (q, k, v; gate and up) have
    scales in common. The scales are ``m ** a``, where m is the root mean square of a channel's activations, with the a
    of 0, 0.05 ... 0.95 that brings the outputs of these layers nearest to the float ones, each relative to its power.
    a = 0 is no scaling: in its own loss, AWQ is never worse than rounding.

    Then the largest weights of each group, or row, are clipped where that brings the output of the layer nearer; not
    for layers whose output goes into attention scores (q, k). MiniLM at 4 bits gains 3.2 dB with a scale for each row,
    6.7 to 9.9, and 1.9 with one for each 32 weights, 10.0 to 11.9, nearly all of it by clipping, as its norms come last
    and can't be divided.

    The search runs the quantizer of each weight some forty times, which takes long where that searches its scale itself
    (``Int8WeightPerChannelMSE``), and gains little there.

    AWQ chooses no codes: weights stay floats, and grids follow them, fixed ones too; `gptq` may round them afterwards.
    From then on scaled and clipped weights are the model's float weights: call what comes next without ``reference``.
    Calibrated ranges of activations don't survive a division; where there are some, layers are only clipped. Call
    `smooth` on the float model instead.

    The model is changed in place, and it is as it was if anything fails.

    Args:
        model: a quantized model.
        data: one batch, or an iterable of batches, as for `walk_blocks`; the inputs that count are those in the float
            model. The first batch is recorded.
        clip: whether weights are clipped.
        duo_scaling: divide the scales by ``w ** (1 - a)`` besides, where w is the mean magnitude of a channel's weights
            relative to the largest of their group.
        skip: paths of layers to leave, as globs: ``["*.o_proj"]``.
        blocks: paths of the blocks that the walk goes through, see `walk_blocks`.
        mask: the keyword argument that says which tokens count.
        rows: how many inputs of a layer are used at most.
        wait_on: where the inputs of a block wait while others run.
        progress: whether a bar shows how far it has come.

    Returns:
        An entry for every weight with a quantizer: where its scales went, or why it has none; the error of its layer's
        output before and after, as a share of its power; the exponent; and the share of weights ``clipped``.

    Raises:
        GraphError: what `walk_blocks` raises, a glob in ``skip`` that matches nothing, or a model in which nothing was
            changed.

    References:
        Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.LayerNorm(8), qnn.QuantLinear(8, 8, weight_bit_width=3)).eval()
        >>> _ = model[0].weight.data.copy_(torch.tensor([20.0, 1, 1, 1, 1, 1, 1, 1]))
        >>> report = awq(model, torch.randn(64, 8))
        >>> report["1"].action, report["1"].figures["after"] < 0.5 * report["1"].figures["before"]
        ('scaled into 0, clipped', True)
    """
    require_model("awq", model, GraphError)
    for name, value in (("clip", clip), ("duo_scaling", duo_scaling)):
        if not isinstance(value, bool):
            raise GraphError(f"awq: {name}={value!r} is not possible: expected True or False.")
    calls = batches_of("awq", model, data)
    sites = {site.path: site for site in sites_of(model)}
    reasons = {path: why for path, site in sites.items() if (why := site.why_not() or why_no_product(site)) is not None}
    reasons |= dict.fromkeys(_skipped(sites, list(skip)), "skipped")
    suited = {path: site for path, site in sites.items() if path not in reasons}
    groups = ChannelGroups(model, example_of(calls[0]), suited, [path for path in reasons if path in sites])
    search = ChannelSearch(groups, clip, duo_scaling)
    known = {site.quant for site in sites.values() if site.why_not() is None}
    with intercepted(quantizers_of(model), lambda path: _floats_on(known)):
        walked = walk_blocks(
            model,
            [example_of(call) for call in calls],
            search.solve,
            float_inputs=False,
            blocks=blocks,
            mask=mask,
            rows=rows,
            wait_on=wait_on,
            progress=progress,
            name="awq",
        )
    report = LayerwiseReport("awq", tuple(search.explained(entry, reasons) for entry in walked))
    if not report.changed:
        raise GraphError(f"awq: nothing to change. {listed(report.left)}")
    search.apply(model, calls)
    return report


def _skipped(paths: Iterable[str], skip: Sequence[str]) -> list[str]:
    paths = list(paths)
    for glob in skip:
        if not any(fnmatchcase(path, glob) for path in paths):
            raise GraphError(f"awq: skip={glob!r} matches no layer. The layers are {', '.join(paths) or 'none'}.")
    return [path for path in paths if any(fnmatchcase(path, glob) for glob in skip)]


def _floats_on(known: set[TensorQuant]) -> Intercept:
    """What stands in for quantizers: values pass, and weights say their grid besides."""

    def passing(quant: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
        return x, quant._quantize(x, *context)[1] if quant in known else None

    return passing
