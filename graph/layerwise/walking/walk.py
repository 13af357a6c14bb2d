"""A walk through a model, weight by weight, with what the layers before have become."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from ....nn.contexts.freezing import frozen
from ....nn.contexts.intercepting import quantizers_of
from ....qcore import Grid, TensorQuant
from ....qcore.models import require_model
from ...calibration.progress import tracked
from ...errors import GraphError
from ...measuring.batches import batches_of
from ...measuring.evaluation import evaluating
from ...measuring.samples import samples_in, taken
from ...passes.models import difference
from ...passes.reports import Entry
from ...recording.examples import Call
from ..reports import LayerwiseReport
from .chain import Chain, chain_of
from .choosing import Choice, Solver, choose
from .gathering import Gatherer, View
from .moments import Moments
from .observing import following, observing
from .products import Product
from .resuming import Checkpoint
from .sites import Site, sites_of
from .stages import Stage, stages_of

__all__ = ["walk_blocks"]

_REPRODUCED = 1e-4


@dataclass
class _Met:
    """Where a weight was met in the first forward."""

    inputs: list[Tensor] = field(default_factory=list)
    products: list[Product | None] = field(default_factory=list)
    parts: bool = False

    def why_not(self) -> str | None:
        if self.parts:
            return "its layer uses it in parts"
        if any(each is None for each in self.products):
            return "its layer multiplies it by a function that isn't a linear layer's or a convolution's"
        return None


def walk_blocks(
    model: nn.Module,
    data: object,
    solve: Solver,
    *,
    reference: nn.Module | None = None,
    blocks: Sequence[str] | None = None,
    float_inputs: bool = True,
    mask: str | None = "attention_mask",
    rows: int | None = None,
    wait_on: str | Path = "device",
    checkpoint: str | Path | None = None,
    progress: bool = True,
    rounds: bool = True,
    name: str = "walk_blocks",
) -> LayerwiseReport:
    """Choose the weights of a quantized model layer by layer, each for the inputs that it gets from those before it.

    For every weight, in the order in which the model uses them, ``solve(path, problem)`` gets a `Problem`: the weight
    as a matrix, its grid, and the second moments of its inputs in the quantized model (with all weights before it as
    they were chosen) and in the float one. It returns a `Solution`, or None to leave the weight. The grid is fixed, see
    `GridQuant.fix`. What is no better than rounding to nearest is not kept, output by output.

    Where the model is a chain of blocks, such as the layers of a transformer, every block runs on what the one before
    it returned, and the inputs of two blocks are kept. Else all that comes before a layer runs again for every layer,
    or, with a single batch, all is done in one forward, in which the inputs of all layers are kept.

    The parameters stay as they are until the walk has ended; until then, codes are kept. If anything fails, nothing
    has changed.

    Args:
        model: a quantized model with calibrated activations. It evaluates, whatever its mode.
        data: one batch, or an iterable of batches, as for `correct_biases`.
        solve: called as ``solve(path, problem)``.
        reference: the float model, with the same paths; by default the model itself with its quantizers off.
        blocks: paths of the blocks; by default the largest list of modules that is a chain, if there is one.
        float_inputs: whether problems have the inputs of the float model, ``cross``; without it the walk is shorter.
        mask: the keyword argument that says which tokens count: (samples, tokens), 0 for padding. None for all.
        rows: how many inputs of a layer are used at most, spread evenly over samples; by default 64 for each column
            of the matrix, but from 2048 to 24576, and never less than 8.
        wait_on: where the inputs of a block wait while others run: ``"device"``, ``"cpu"``, or a folder.
        checkpoint: a file that holds what was chosen so far, after every block. If it exists, the walk goes on there.
        progress: whether a bar shows how far it has come.
        rounds: whether weights are rounded; False fixes their grids alone.
        name: what the report calls the algorithm.

    Returns:
        An entry for every weight with a quantizer.

    Raises:
        GraphError: nothing could be done, activations without a range, no data, blocks that are no chain, or a
            checkpoint of something else.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantLinear(8, 4, weight_bit_width=3), nn.ReLU(), qnn.QuantLinear(4, 2)).eval()
        >>> def to_nearest(path, problem):
        ...     print(path, tuple(problem.weight.shape), problem.rows)
        >>> report = walk_blocks(model, torch.rand(32, 8), to_nearest)
        0 (1, 4, 8) 32
        2 (1, 2, 4) 32
    """
    require_model(name, model, GraphError)
    if reference is not None:
        require_model(name, reference, GraphError)
    calls = batches_of(name, model, data)
    walk = _Walk(name, model, reference, solve, float_inputs, mask, rows, progress, rounds)
    walk.check()
    with ExitStack() as stack:
        stack.enter_context(evaluating(*(each for each in (model, reference) if each is not None)))
        stack.enter_context(frozen(model))
        chain = walk.survey(calls, blocks)
        saved = None if checkpoint is None else Checkpoint(checkpoint, name, walk.sites)
        if saved is not None:
            walk.resume(saved)
        walk.go(chain, calls, wait_on, saved)
    return walk.finish()


class _Walk:
    """What `walk_blocks` knows in between."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        reference: nn.Module | None,
        solve: Solver,
        float_inputs: bool,
        mask: str | None,
        rows: int | None,
        progress: bool,
        rounds: bool,
    ) -> None:
        self.name, self.model, self.reference, self.solve = name, model, reference, solve
        self.float_inputs, self.mask, self.rows, self.progress = float_inputs, mask, rows, progress
        self.rounds = rounds
        self.left: dict[str, str] = {}
        self.sites: dict[TensorQuant, Site] = {}
        self.met: dict[Site, _Met] = {}
        self.choices: dict[Site, Choice] = {}
        self.chosen: dict[Site, Tensor] = {}
        self.grids: dict[Site, Grid] = {}
        self.kept: dict[Site, tuple[Tensor, Grid | None]] = {}  # quantized weights of a stage

    # What there is to do

    def check(self) -> None:
        """Find the weights, and refuse a model without a range for its activations."""
        found = sites_of(self.model)
        if not found:
            raise GraphError(
                f"{self.name}: this {type(self.model).__name__} has no quantized weight. Quantize it first: "
                "quantize(model, {nn.Conv2d: W8A8, nn.Linear: W8A8})."
            )
        for site in found:
            why = site.why_not()
            if why is None:
                self.sites[site.quant] = site
            else:
                self.left[site.path] = why
        lacking = [path for path, each in quantizers_of(self.model).items() if not each.calibrated]
        if lacking:
            more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
            raise GraphError(
                f"{self.name}: {', '.join(lacking[:8])}{more} saw no data and {'has' if len(lacking) == 1 else 'have'} "
                "no range yet, so inputs are not those of the quantized model. Calibrate first: with calibrate(model): "
                "model(batch)."
            )

    def survey(self, calls: Sequence[Call], blocks: Sequence[str] | None) -> Chain | None:
        """See in what order the weights are used, and by what, in a forward of one sample; find the chain."""
        several = (samples_in(calls[0]) or 0) > 1
        call = taken(calls[0], slice(0, 1)) if several else calls[0]
        try:
            chain = self._surveyed(call, blocks)
        except GraphError:
            raise
        except Exception:
            if not several:
                raise
            chain = self._surveyed(calls[0], blocks)  # a model that takes no single sample
        for site, met in list(self.met.items()):
            why = met.why_not()
            if why is not None:
                self.left[site.path] = why
                del self.met[site], self.sites[site.quant]
        for site in list(self.sites.values()):
            if site not in self.met:
                self.left.setdefault(site.path, "no data reaches it, or it only selects rows of its weight")
                del self.sites[site.quant]
        if not self.sites:
            raise GraphError(self._nothing())
        return chain

    def _surveyed(self, call: Call, blocks: Sequence[str] | None) -> Chain | None:
        self.met = {}

        def meet(site: Site, product: Product | None, x: Tensor, weight: Tensor) -> None:
            found = self.met.setdefault(site, _Met())
            found.inputs.append(x)
            found.products.append(product)
            found.parts = found.parts or weight.shape != site.parameter.shape

        with observing(self.model, self.sites, meet, floats=True):
            out = self.model(*call[0], **call[1])
            met, self.met = self.met, {}
            chain = chain_of(self.model, call, blocks)
            reproduced = chain is None or self._reproduces(chain, call, out)
        if not reproduced:
            if blocks is not None:
                raise GraphError(
                    f"{self.name}: blocks={list(blocks)} is no chain: what they return is used elsewhere, too. Leave "
                    "blocks out, or name others."
                )
            chain = None
        self.met = met
        return chain

    def _reproduces(self, chain: Chain, call: Call, out: object) -> bool:
        """Whether running the blocks one by one gives what the model does."""
        result: object = None
        for stage, kept in stages_of(self.model, chain, [call]):
            result = stage(kept[0], 0)
            stage.results[0] = result
        try:
            return difference(out, result)[0] <= _REPRODUCED
        except ValueError:
            return False

    def _nothing(self) -> str:
        reasons: dict[str, list[str]] = {}
        for path, why in self.left.items():
            reasons.setdefault(why, []).append(path or "the model")
        said = "; ".join(f"{', '.join(paths[:8])}: {why}" for why, paths in reasons.items())
        return f"{self.name}: nothing to do. {said}."

    def resume(self, saved: Checkpoint) -> None:
        """Take over what was chosen before."""
        self.choices |= saved.choices()

    # The walk

    def go(self, chain: Chain | None, calls: Sequence[Call], wait_on: str | Path, saved: Checkpoint | None) -> None:
        """Solve all, stage by stage."""
        total = sum(samples_in(call) or 1 for call in calls)
        masks = [None if self.mask is None else call[1].get(self.mask) for call in calls]
        floats = self.model if self.reference is None else self.reference
        steps = iter(stages_of(self.model, chain, calls, wait_on))
        shadow = iter(stages_of(floats, chain, calls, wait_on)) if self.float_inputs else None
        todo = [site for site in self.met if site not in self.choices]
        with closing(tracked(todo, self.name, unit="weights", shown=self.progress)) as bar:
            first, leaving = True, list[Site]()
            while True:
                with self._quantized(_ignored):
                    stage, kept = next(steps, (None, None))
                float_stage = float_kept = None
                if shadow is not None:
                    with self._floats(_ignored):
                        float_stage, float_kept = next(shadow, (None, None))
                if stage is None or kept is None:
                    break
                self.kept.clear()
                here = self._sites_in(stage, chain, first)
                for site in here:
                    if site in self.choices and (values := self.choices[site].chosen) is not None:
                        self.chosen[site] = values
                for site in leaving:  # their weights run no more
                    self.choices[site].pack()
                    self.chosen.pop(site, None)
                work = [site for site in here if site not in self.choices]
                if work:
                    views = View(stage, kept, self._quantized), None
                    if float_stage is not None and float_kept is not None:
                        views = views[0], View(float_stage, float_kept, self._floats)
                    gather = Gatherer(*views, masks, total, self.rows)
                    for site in gather.solved(work, self._counts(), self.choose):
                        next(bar, site)
                    if saved is not None:
                        saved.save(self.choices)
                leaving = [site for site in here if site in self.choices] if stage.name else []
                first = False

    def _counts(self) -> Mapping[Site, int]:
        """How often each weight is used in one forward."""
        return {site: len(met.inputs) for site, met in self.met.items()}

    def _sites_in(self, stage: Stage, chain: Chain | None, first: bool) -> list[Site]:
        """The weights that a stage uses."""
        if stage.paths is not None:
            return [site for site in self.met if _within(site.path, stage.paths)]
        if chain is None:
            return list(self.met)
        outside = [site for site in self.met if not _within(site.path, chain.paths)]
        if not first:
            return [site for site in outside if site not in self.choices]
        order = list(self.met)
        starts = [order.index(site) for site in order if _within(site.path, chain.paths)]
        return [site for site in outside if not starts or order.index(site) < starts[0]]

    @contextmanager
    def _quantized(self, meet: Callable[..., Tensor | None]) -> Iterator[None]:
        with observing(self.model, self.sites, meet, self.chosen, self.grids, self.kept):
            yield

    @contextmanager
    def _floats(self, meet: Callable[..., Tensor | None]) -> Iterator[None]:
        if self.reference is None:
            with observing(self.model, self.sites, meet, floats=True):
                yield
        else:
            with following(self.reference, self.sites.values(), meet):
                yield

    def choose(self, site: Site, product: Product, moments: Moments) -> Choice:
        """Solve one problem."""
        moments.pool()
        choice = choose(self.name, site, self.grids[site], product, moments, self.solve, self.rounds)
        self.choices[site] = choice
        if choice.values is not None:
            self.chosen[site] = choice.values
        return choice

    def finish(self) -> LayerwiseReport:
        """Write what was chosen, and report it."""
        if not any(choice.chosen is not None for choice in self.choices.values()) and not self.choices:
            raise GraphError(self._nothing())
        for choice in self.choices.values():
            choice.write()
        entries = {choice.entry.path: choice.entry for choice in self.choices.values()}
        entries |= {path: Entry(path, "left", why) for path, why in self.left.items()}
        for site in self.met:
            entries.setdefault(site.path, Entry(site.path, "left", "no data reaches it"))
        order = [site.path for site in sites_of(self.model)]
        return LayerwiseReport(self.name, tuple(entries[path] for path in order if path in entries))


def _ignored(*args: object) -> None:
    return None


def _within(path: str, parents: Sequence[str]) -> bool:
    return any(path == parent or path.startswith(f"{parent}.") for parent in parents)
