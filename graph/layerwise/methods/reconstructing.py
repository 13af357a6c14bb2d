"""Learning the rounding of whole blocks."""

from contextlib import ExitStack
from dataclasses import asdict
from typing import Unpack

import torch
from torch import nn

from ....qcore.models import require_model
from ....qcore.scaling.pooling import distributed
from ...errors import GraphError
from ...measuring.batches import batches_of
from ...measuring.evaluation import evaluating
from ..options import WalkOptions
from ..reconstruction.driver import Reconstruction
from ..reconstruction.learning import Settings
from ..reports import LayerwiseReport
from ..walking.guarding import check_options, devices_of
from ..walking.masking import USUAL
from ..walking.resuming import Checkpoint, fingerprint

__all__ = ["reconstruct_blocks"]

_NAME = "reconstruct_blocks"


def reconstruct_blocks(
    model: nn.Module,
    data: object,
    *,
    iterations: int = 300,
    batch_size: int = 16,
    learning_rate: float = 0.2,
    penalty: float = 10.0,
    beta: tuple[float, float] = (20.0, 2.0),
    warm_up: float = 0.5,
    drop: float = 0.0,
    activation_scales: bool = False,
    scale_learning_rate: float = 0.001,
    seed: int = 0,
    **options: Unpack[WalkOptions],
) -> LayerwiseReport:
    """BRECQ and QDrop: learn the rounding of all weights of a block at once, on the block's output.

    The rounding of each weight is learned as by `adaround`, but by gradients through the block, on the difference
    between what it returns and what the float model's block returns. So the error of one layer may make up for that of
    another, residuals and attention count, and so does the quantization of activations. It takes data in the loop: more
    time than `adaround`, and for few bits a better model.

    Blocks are those of a chain, such as the layers of a transformer, each with inputs from those before it, or what
    ``blocks`` names; else the model is one block. What runs before the first or after the last of a chain is a block,
    too. A block that is not nearer to the float one than before keeps what it had. The model is changed in place, as by
    `gptq`: the scales of weights are fixed. If anything fails, nothing has changed.

    In memory are the inputs of one block in the quantized and in the float model, and its output in the latter, for all
    data (``wait_on`` says where), and what the gradients of one minibatch take.

    Args:
        model: a quantized model with calibrated activations.
        data: one batch, or an iterable of batches. Samples are dealt to minibatches anew, where the model takes each as
            it would alone.
        iterations: minibatches that each block learns from.
        batch_size: the most samples in one of them.
        learning_rate: of Adam, for the rounding.
        penalty: what undecided weights cost: with all of them halfway, as much as this times the block's error.
        beta: exponent of that penalty at first and at last.
        warm_up: the share of the steps without a penalty.
        drop: the probability that a number of the block's input, and of each quantized activation in it, is the float
            one instead, while the block learns: 0 for BRECQ, 0.5 for QDrop, which helps where data is scarce.
        activation_scales: whether the ranges of activations are learned, too, where they have parameters for it.
        scale_learning_rate: how far these move in a step at most, as a share of their magnitude; it falls to 0.
        seed: of the order of samples, and of what is dropped.
        **options: see `WalkOptions`; ``rows`` has no meaning here.

    Returns:
        An entry for each block, with its errors ``before`` and ``after`` as shares of the power of its output, and one
        for each weight: ``moved`` is the share of those not rounded to nearest, ``undecided`` of those still between up
        and down at the end, of all that lie between two levels.

    Raises:
        GraphError: nothing to learn, activations without a range, blocks that are no chain, an invalid setting, or
            ``rows``.

    References:
        Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", 2021; Wei et al.,
        "QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization", 2022.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> _ = torch.manual_seed(0)
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.up = qnn.QuantLinear(8, 16, weight_bit_width=3)
        ...         self.down = qnn.QuantLinear(16, 8, weight_bit_width=3)
        ...
        ...     def forward(self, x):
        ...         return x + self.down(self.up(x).relu())
        >>> model = nn.Sequential(Block(), Block()).eval()
        >>> report = reconstruct_blocks(model, torch.randn(64, 4) @ torch.randn(4, 8), iterations=40)
        >>> [entry.action for entry in report if "after" in entry.figures]  # that of the blocks
        ['reconstruct_blocks', 'reconstruct_blocks']
    """
    settings = Settings(
        iterations,
        batch_size,
        learning_rate,
        penalty,
        beta,
        warm_up,
        drop,
        activation_scales,
        scale_learning_rate,
        seed,
    )
    settings.check(_NAME)
    require_model(_NAME, model, GraphError)
    reference = options.pop("reference", None)
    if reference is not None:
        require_model(_NAME, reference, GraphError)
    rows = options.pop("rows", None)
    if rows is not None:
        raise GraphError(
            f"{_NAME}: rows={rows!r} has no meaning here: whole outputs are compared. Leave it out; batch_size and "
            "iterations say how much is computed."
        )
    blocks, mask = options.pop("blocks", None), options.pop("mask", USUAL)
    wait_on, progress = options.pop("wait_on", "device"), options.pop("progress", True)
    checkpoint = options.pop("checkpoint", None)
    if options:
        raise TypeError(f"{_NAME}() got an unexpected keyword argument {next(iter(options))!r}")
    check_options(_NAME, blocks, rows, wait_on)
    if distributed():
        raise GraphError(f"{_NAME}: several processes can't learn a block together yet. Call it in one of them.")
    calls = batches_of(_NAME, model, data)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices_of(model)))
        stack.enter_context(evaluating(*(each for each in (model, reference) if each is not None)))
        work = Reconstruction(_NAME, model, reference, calls, settings, blocks, mask, wait_on, progress)
        saved = None
        if checkpoint is not None:
            of = {"model": fingerprint(model), "data": fingerprint(calls)}
            if reference is not None:
                of["reference"] = fingerprint(reference)
            relevant = {**asdict(settings), "mask": mask, "blocks": blocks}
            saved = Checkpoint(checkpoint, _NAME, list(work.sites.values()), relevant, of)
        work.go(saved)
    return work.finish()
