"""LQER: low-rank branches of floats for the layers of a quantized model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor, nn

from ....nn.branches.low_rank import LowRank
from ....nn.weight_layer import WeightLayer
from ....qcore.models import require_model
from ...conversion.snapshot import restored_on_failure
from ...errors import GraphError
from ...passes.reports import Entry, listed
from ..options import WalkOptions, checked
from ..problem import Problem, Solution
from ..reports import LayerwiseReport
from ..solvers.branches import METHODS, LowRankMethod, first_directions, low_rank
from ..walking.products import Transposed
from ..walking.sites import Site, sites_of
from ..walking.walk import walk_blocks
from .layers import product_in, why_no_product
from .trials import Trial

__all__ = ["lqer"]


def lqer(
    model: nn.Module,
    data: object,
    *,
    rank: int = 16,
    method: LowRankMethod = "qera",
    float_inputs: bool = False,
    **options: Unpack[WalkOptions],
) -> LayerwiseReport:
    """Give the layers of a quantized model low-rank branches, which add in floats what quantization takes most of all.

    A linear layer or convolution then computes ``Q x + up (down x)`` with its input x as quantized and two thin
    matrices of floats, its child ``correction``, a `bitwright.nn.LowRank`. Weights and grids stay as they are. A branch
    of rank r takes ``r (inputs + outputs)`` more weights and two small products; every ONNX export but the integer
    dialect has it, and so has a state dict, which loads into the model without branches, too. `low_rank` documents the
    methods.

    It comes after whatever else chooses the weights: after `gptq`, pass the float model as ``reference``.

    The model is changed in place, and it is as it was if anything fails.

    Args:
        model: a quantized model with calibrated activations.
        data: one batch, or an iterable of batches, as for `walk_blocks`.
        rank: of the branches, r. A layer that would get a branch no smaller than itself gets none.
        method: ``"qera"`` weighs the error of the weight by the second moments of the inputs, ``"lqer"`` by the power
            of each, ``"lorc"`` by nothing; with ``"svd"`` the branch takes the largest part of the weight itself, and
            what is left of it is quantized. MiniLM at 4 bits with rank 16, 768 tokens: 12.5, 11.3, 9.9 and 9.8 dB,
            and 8.7 without branches.
        float_inputs: whether a branch of the method ``"qera"`` also makes up for what layers before have added to the
            input, where the model keeps the float weights.
        **options: see `WalkOptions`. The weights of ``reference`` are those to be approximated, where it is given, and
            else those that the model itself keeps.

    Returns:
        An entry for every weight with a quantizer: the error of its layer's output before and after, the rank, and
        ``weights``, how many numbers the branch adds for each of the weight.

    Raises:
        GraphError: what `walk_blocks` raises, an impossible rank or method, or no layer that a branch was put at.

    References:
        Zhang et al., "LQER: Low-Rank Quantization Error Reconstruction for LLMs", 2024.

    Example:
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantLinear(16, 16, weight_bit_width=3)).eval()
        >>> report = lqer(model, torch.randn(64, 16), rank=4)
        >>> model[0].correction
        LowRank(rank=4)
        >>> report["0"].figures["after"] < report["0"].figures["before"], report["0"].figures["weights"]
        (True, 0.5)
    """
    require_model("lqer", model, GraphError)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise GraphError(f"lqer: rank={rank!r} is not possible. Pass a whole number, such as 16.")
    if method not in METHODS:
        raise GraphError(f"lqer: method={method!r} is none of {', '.join(METHODS)}.")
    reference = options.get("reference")
    if method == "svd" and reference is not None:
        raise GraphError(
            'lqer: method="svd" quantizes what its branches leave of the weights, so that what chose them is lost. '
            "Leave reference out, or choose another method."
        )
    branches = _Branches(model, {site.path: site for site in sites_of(model)}, rank, method, reference)
    with branches.restored_on_failure(model):
        found = walk_blocks(
            model,
            data,
            branches.solve,
            float_inputs=float_inputs,
            shared=True,
            settings={"rank": rank, "method": method},
            name="lqer",
            **checked(lqer, options),
        )
        report = LayerwiseReport("lqer", tuple(branches.explained(entry) for entry in found))
        if not report.changed:
            raise GraphError(f"lqer: nothing to correct. {listed(report.left)}")
        for entry in report.changed:
            branches.attach(entry.path)
    return report


ROUNDED = "its weight is rounded already; pass the float model, reference=float_model"


class _Branches:
    """The branches of a model's layers; until they are attached, the weights of their layers stand for both."""

    def __init__(
        self,
        model: nn.Module,
        sites: Mapping[str, Site],
        rank: int,
        method: LowRankMethod,
        reference: nn.Module | None,
    ) -> None:
        self.sites, self.rank = sites, rank
        self.method: LowRankMethod = method
        self.named = None if reference is None else dict(reference.named_modules())
        self.left = {path: why for path, site in sites.items() if (why := _why_not(site, rank)) is not None}
        if method == "svd":
            self.left |= {path: why for path in sites if (why := _why_shared(model, sites[path])) is not None}
        self.before = {path: site.parameter for path, site in sites.items() if path not in self.left}
        self.found: dict[str, tuple[Tensor, Tensor]] = {}  # up and down

    @contextmanager
    def restored_on_failure(self, model: nn.Module) -> Iterator[None]:
        """Modules and weights are as before if the block raises."""
        parameters = {path: self.sites[path].parameter for path in self.before}
        self.before = {path: each.detach().clone() for path, each in parameters.items()}
        with restored_on_failure(model):
            try:
                yield
            except BaseException:
                with torch.no_grad():
                    for path, each in parameters.items():
                        each.copy_(self.before[path])
                raise

    def solve(self, path: str, problem: Problem) -> Solution | None:
        """What weight and branch come to."""
        site = self.sites[path]
        if path in self.left:
            return None
        problem, quantized = self._posed(site, problem)
        branch = low_rank(problem, self.rank, self.method, quantized=None if self.method == "svd" else quantized)
        rest = Trial(site).quantized(branch.rest) if self.method == "svd" else quantized
        losses = [float(problem.loss(each).sum()) for each in (quantized, rest + branch.weight)]
        if not losses[1] < losses[0]:
            rounded = torch.equal(quantized.to(problem.weight), problem.weight)
            self.left[path] = ROUNDED if rounded else "a branch does not bring its output nearer to the float one"
            return None
        self.found[path] = branch.up, branch.down
        outputs, inputs = problem.weight.shape[1:]
        power = float(problem.loss(torch.zeros_like(problem.weight)).sum()) or 1.0
        shares = {"before": losses[0] / power, "after": losses[1] / power} if problem.signal is None else {}
        added = self.rank * (outputs + inputs) / (outputs * inputs)
        return Solution(
            (rest + branch.weight).to(problem.weight),
            on_grid=False,
            as_is=True,
            figures={**shares, "rank": self.rank, "weights": added},
        )

    def _posed(self, site: Site, problem: Problem) -> tuple[Problem, Tensor]:
        """The problem with the weight that is to be approximated, and what the model has instead of it."""
        quantized = problem.nearest()
        if self.named is not None:
            weight = self.named[site.module].weight
            assert isinstance(weight, Tensor)
            if not torch.equal(weight, site.parameter):  # the model keeps others, whose outputs are nobody's aim
                wanted = product_in(site.layer).matrix(weight.detach()).to(problem.weight)
                problem = replace(problem, weight=wanted, cross=None, signal=None)
        return problem, quantized

    def explained(self, entry: Entry) -> Entry:
        """The entry of a walk, with the reason why a layer got no branch."""
        return replace(entry, reason=self.left[entry.path]) if entry.path in self.left else entry

    @torch.no_grad()
    def attach(self, path: str) -> None:
        """Give a layer its branch, and its weight back."""
        site, before = self.sites[path], self.before[path]
        product, both = product_in(site.layer), site.parameter.detach().clone()
        site.parameter.copy_(before)
        up, down = self.found.get(path) or self._again(site, product.matrix(both))
        if self.method == "svd":
            site.parameter.sub_(product.stored(up @ down, before.shape).to(before))
            site.quant.rederive()
        shape = list(before.shape)
        shape[1 if isinstance(product, Transposed) else 0] = self.rank
        branch = LowRank(product.stored(down, shape).to(before), up[0].to(before))
        site.layer.add_module("correction", branch.train(site.layer.training))

    def _again(self, site: Site, both: Tensor) -> tuple[Tensor, Tensor]:
        """The branch of a layer that a walk which ended early has found."""
        product = product_in(site.layer)
        missing = product.matrix(site.parameter.detach()).double()
        if self.method != "svd":
            missing = both.double() - product.matrix(site.as_stored(site.quant.quantize(site.seen())[0])).double()
        up = first_directions(missing, self.rank)
        return up, up.mT @ missing


def _why_not(site: Site, rank: int) -> str | None:
    """Why a layer can't have a branch; None if it can."""
    layer = site.layer
    why = site.why_not() or why_no_product(site)
    if why is not None:
        return why
    assert isinstance(layer, WeightLayer)
    if getattr(layer, "groups", 1) > 1:
        return f"it has {layer.groups} groups of channels, which a branch would mix"
    if layer._needs_sums_grid():
        return "its output is to lie on the grid of the products, to which a branch adds floats"
    outputs, inputs = product_in(layer).matrix(layer.weight).shape[1:]
    if rank * (outputs + inputs) >= outputs * inputs:
        return f"a branch of rank {rank} would be no smaller than its weight, {outputs} x {inputs}"
    return None


def _why_shared(model: nn.Module, site: Site) -> str | None:
    """Why the weight of a layer can't be changed; None if it can."""
    for other, module in model.named_modules():
        if module is not site.layer and any(each is site.parameter for each in module._parameters.values()):
            return f"it shares its weight with {other or 'the model itself'}"
    return None
