"""A walk through a model, weight by weight, with what the layers before have become."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils import _pytree

from ....nn.contexts.freezing import frozen
from ....nn.contexts.intercepting import quantizers_of
from ....nn.contexts.progress import tracked
from ....qcore import Grid, TensorQuant
from ....qcore.models import require_model, shown
from ....qcore.scaling.pooling import distributed, lowest, summed
from ...conversion.snapshot import restored_on_failure
from ...errors import GraphError
from ...measuring.batches import batches_of
from ...measuring.evaluation import evaluating
from ...measuring.samples import samples_in, taken
from ...passes.models import difference
from ...passes.reports import Entry
from ...recording.examples import Call
from ...recording.tensors import tensors_in
from ..reports import LayerwiseReport
from .chain import Chain, Reached, chain_of
from .choosing import ROUNDED, Choice, Solver, choose
from .gathering import Gathered, Gatherer, View
from .guarding import check_options, devices_of, uninterrupted
from .masking import USUAL, Masks
from .observing import Meet, Meeting, following, observing
from .resuming import Checkpoint, fingerprint
from .sites import Site, shared_parameters, sites_of
from .stages import Stage, stages_of
from .surveying import Met, Survey

__all__ = ["walk_blocks"]

_REPRODUCED = 1e-4


def walk_blocks(
    model: nn.Module,
    data: object,
    solve: Solver,
    *,
    reference: nn.Module | None = None,
    blocks: Sequence[str] | None = None,
    float_inputs: bool = True,
    mask: str | None = USUAL,
    rows: int | None = None,
    wait_on: str | Path = "device",
    checkpoint: str | Path | None = None,
    progress: bool = True,
    rounds: bool = True,
    shared: bool = False,
    settings: Mapping[str, object] | None = None,
    name: str = "walk_blocks",
) -> LayerwiseReport:
    """Choose the weights of a quantized model layer by layer, each for the inputs that it gets from those before it.

    For every weight, in the order in which the model uses them, ``solve(path, problem)`` gets a `Problem`: the weight
    as a matrix, its grid, and the second moments of its inputs in the quantized model (with all weights before it as
    they were chosen) and in the float one. It returns a `Solution`, or None to leave the weight. The grid is fixed, see
    `GridQuant.fix`. What is no better than rounding to nearest is not kept, output by output.

    Where the model is a chain of blocks, such as the layers of a transformer, every block runs on what the one before
    it returned, and only its inputs are kept. Else all that comes before a layer runs again for every layer,
    or, with a single batch, all is done in one forward, in which the inputs of all layers are kept.

    The parameters stay as they are until the walk has ended; until then, codes are kept. If anything fails, nothing
    has changed. Where several processes walk, each with data of its own, the moments are those of all of it, and all
    processes come to the same weights.

    Memory, besides the model: of a chain, the inputs of one block for all batches (on the device, the CPU or on disk,
    see ``wait_on``), twice with ``float_inputs``, and one byte for each weight that was chosen; while a weight is
    chosen, its matrix of moments, thrice with ``float_inputs``, and what the algorithm needs. None of it but the codes
    grows with the number of blocks.

    Args:
        model: a quantized model with calibrated activations. It evaluates, whatever its mode.
        data: one batch, or an iterable of batches, as for `correct_biases`.
        solve: called as ``solve(path, problem)``.
        reference: the float model, with the same paths; by default the model itself with its quantizers off.
        blocks: paths of the blocks; by default the largest list of modules that is a chain, if there is one.
        float_inputs: whether problems have the inputs of the float model, ``cross``; without it the walk is shorter.
        mask: the argument that says which tokens count: (samples, tokens), 0 for padding. None for all.
        rows: how many inputs of a layer are used at most, spread evenly over samples, of which each gives one at least;
            by default 64 for each column of the matrix, but from 2048 to 24576, and never less than 8. Recurrent layers
            use all.
        wait_on: where the inputs of a block wait while others run: ``"device"``, ``"cpu"``, or a folder.
        checkpoint: a file that holds what was chosen so far, after every block. If it exists, the walk goes on there.
        progress: whether a bar shows how far it has come.
        rounds: whether weights are rounded; False fixes their grids alone.
        shared: whether ``solve`` gets weights that are one parameter of several layers, too, which it has to leave.
        settings: of ``solve``, which a checkpoint has to agree with.
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
    check_options(name, blocks, rows, wait_on, checkpoint)
    if not callable(solve):
        raise GraphError(
            f"{name}: solve={shown(solve)} is no function. Pass one that takes the path of a weight and a Problem, and "
            "returns a Solution or None."
        )
    calls = batches_of(name, model, data)
    walk = _Walk(name, model, reference, solve, float_inputs, Masks.among(name, model, calls, mask), rows, rounds)
    walk.check(shared)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices_of(model)))
        stack.enter_context(evaluating(*(each for each in (model, reference) if each is not None)))
        stack.enter_context(frozen(model))
        chain = walk.survey(calls, blocks)
        saved = None
        if checkpoint is not None:
            relevant = {"rows": rows, "mask": mask, "float_inputs": float_inputs, **(settings or {})}
            of = {"model": fingerprint(model), "data": fingerprint(calls)}
            if reference is not None:
                of["reference"] = fingerprint(reference)
            saved = Checkpoint(checkpoint, name, list(walk.survey_of.met), relevant, of)
            walk.choices |= saved.choices()
        walk.go(chain, calls, wait_on, saved, progress)
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
        masks: Masks,
        rows: int | None,
        rounds: bool,
    ) -> None:
        self.name, self.model, self.reference, self.solve = name, model, reference, solve
        self.float_inputs, self.masks, self.rows, self.rounds = float_inputs, masks, rows, rounds
        self.left: dict[str, str] = {}
        self.sites: dict[TensorQuant, Site] = {}
        self.survey_of = Survey()
        self.choices: dict[Site, Choice] = {}
        self.chosen: dict[Site, Tensor] = {}
        self.grids: dict[Site, Grid] = {}
        self.kept: dict[Site, tuple[Tensor, Grid | None]] = {}  # quantized weights of a stage
        self.bar: Iterator[Site] = iter(())

    @property
    def met(self) -> Mapping[Site, Met]:
        """The weights to be chosen, in their order."""
        return self.survey_of.met

    # What there is to do

    def check(self, shared: bool = False) -> None:
        """Find the weights, and refuse a model without a range for its activations."""
        found = sites_of(self.model)
        if not found:
            raise GraphError(
                f"{self.name}: this {type(self.model).__name__} has no quantized weight. Quantize it first: "
                "quantize(model, {nn.Conv2d: W8A8, nn.Linear: W8A8})."
            )
        tied = shared_parameters(self.model)
        for site in found:
            others = tied.get(id(site.parameter), [])
            why = site.why_not()
            if why is None and others and not shared:
                why = f"its weight is one parameter of {' and '.join(others)}"
            if why is None:
                self.sites[site.quant] = site
            else:
                self.left[site.path] = why
        if not self.sites:
            raise GraphError(self._nothing())
        meta = [path for path, each in self.model.named_parameters() if each.is_meta]
        if meta:
            raise GraphError(f"{self.name}: {meta[0]} is on the meta device, without numbers. Load the model first.")
        sharded = [path for path, each in self.model.named_parameters() if isinstance(each, DTensor)]
        if sharded:
            raise GraphError(
                f"{self.name}: {sharded[0]} is sharded over processes, and {self.name} works on whole matrices. Call "
                "it before fully_shard. Processes that have the whole model may each have a share of the data."
            )
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
            out = self._look(call)
        except GraphError:
            raise
        except Exception:
            if not several:
                raise
            call = calls[0]  # a model that takes no single sample
            self.survey_of = Survey()
            out = self._look(call)
        if self.reference is not None and self.float_inputs:
            self._look_at(self.reference, call)
        for other in calls if several else calls[1:]:
            if len(self.met) == len(self.sites):
                break
            self._look(other)
        self.survey_of.pool(self.sites.values())
        for site, met in list(self.met.items()):
            why = met.why_not()
            if why is not None:
                self.left[site.path] = why
                self.survey_of.drop(site)
        for site in self.sites.values():
            if site not in self.met:
                self.left.setdefault(site.path, "no data reaches it")
        self.sites = {site.quant: site for site in self.met}
        if not self.sites:
            raise GraphError(self._nothing())
        return self._chain(call, out, blocks)

    def _look(self, call: Call) -> object:
        """See what the weights meet in a forward; what it returns."""
        with observing(self.model, self.sites, self.survey_of.see, floats=True):
            out = self.model(*call[0], **call[1])
        self.survey_of.end()
        return out

    def _look_at(self, reference: nn.Module, call: Call) -> None:
        """Refuse a reference that hides what meets its weights."""
        seen: dict[Site, Meeting] = {}

        def see(meeting: Meeting) -> None:
            if meeting.product is not None:
                seen[meeting.site] = meeting

        with following(reference, self.met, see):
            reference(*call[0], **call[1])
        hidden = [site.path for site, met in self.met.items() if site not in seen and met.product is not None]
        if hidden:
            more = f" and {len(hidden) - 8} more" if len(hidden) > 8 else ""
            raise GraphError(
                f"{self.name}: the reference hides what meets {', '.join(hidden[:8])}{more}: a function of torch "
                "computes the whole layer. Leave reference out; the model with its quantizers off stands for it."
            )

    def _chain(self, call: Call, out: object, blocks: Sequence[str] | None) -> Chain | None:
        """The chain that the model is, for all processes; None if it is none."""
        with observing(self.model, self.sites, None, floats=True):
            try:
                chain = chain_of(self.model, call, blocks)
            except GraphError as error:
                raise GraphError(f"{self.name}: {error}") from None
            reproduced = chain is not None and self._reproduces(chain, call, out)
        if chain is not None and not reproduced and blocks is not None:
            raise GraphError(
                f"{self.name}: blocks={list(blocks)} is no chain: run one by one, they don't give what the model does. "
                "What they return is used elsewhere, too, or they keep something from one forward to the next. Leave "
                "blocks out, or name others."
            )
        agreed = reproduced
        if distributed():
            agreed = bool(lowest(torch.tensor(float(reproduced), device=next(iter(self.met)).parameter.device)))
        return chain if agreed else None

    def _reproduces(self, chain: Chain, call: Call, out: object) -> bool:
        """Whether running the blocks one by one gives what the model does, the second time, too."""
        result: object = None
        try:
            with closing(stages_of(self.model, chain, [call])) as stages:
                for stage, kept in stages:
                    result, again = stage(kept[0], 0), stage(kept[0], 0)
                    if not _agree(result, again):
                        return False
                    stage.results[0] = result
            return _agree(out, result)
        except Exception:  # whatever a block makes of being called twice: then the model runs as a whole
            return False

    def _nothing(self) -> str:
        reasons: dict[str, list[str]] = {}
        for path, why in self.left.items():
            reasons.setdefault(why, []).append(path or "the model")
        said = "; ".join(f"{', '.join(paths[:8])}: {why}" for why, paths in reasons.items())
        return f"{self.name}: nothing to do. {said}."

    # The walk

    def go(
        self,
        chain: Chain | None,
        calls: Sequence[Call],
        wait_on: str | Path,
        saved: Checkpoint | None,
        progress: bool,
    ) -> None:
        """Solve all, stage by stage."""
        other = self.model if self.reference is None else self.reference
        todo = [site for site in self.met if site not in self.choices]
        total = self._samples(calls)
        with ExitStack() as stack:
            self.bar = stack.enter_context(closing(tracked(todo, self.name, unit="weights", shown=progress)))
            steps = stack.enter_context(closing(stages_of(self.model, chain, calls, wait_on)))
            shadow = stack.enter_context(closing(stages_of(other, chain, calls, wait_on)))
            first, leaving = True, list[Site]()
            while True:
                with self._quantized(None):
                    found = next(steps, None)
                beside = None
                if self.float_inputs:
                    with self._floats(None):
                        beside = next(shadow, None)
                if found is None:
                    break
                self.kept.clear()
                self.grids.clear()
                here = self._sites_in(found[0], chain, first)
                for site in here:
                    if site in self.choices and (values := self.choices[site].chosen) is not None:
                        self.chosen[site] = values
                for site in leaving:  # their weights run no more
                    self.choices[site].pack()
                    self.chosen.pop(site, None)
                work = [site for site in here if site not in self.choices]
                if work:
                    quantized = View(*found, self._quantized)
                    floats = None if beside is None else View(*beside, self._floats)
                    gatherer = Gatherer(quantized, floats, self.masks, total, self.rows)
                    gatherer.solve(work, self.met, self.choose)
                    if saved is not None:
                        saved.save(self.choices)
                leaving = [site for site in here if site in self.choices] if found[0].name else []
                first = False

    def _samples(self, calls: Sequence[Call]) -> int:
        """How many samples all processes have."""
        total = sum(samples_in(call) or _largest(call) for call in calls)
        if not distributed():
            return total
        device = next(iter(self.met)).parameter.device
        return int(summed(torch.tensor(float(total), dtype=torch.float64, device=device)))

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
    def _quantized(self, meet: Meet | None) -> Iterator[None]:
        with observing(self.model, self.sites, meet, self.chosen, self.grids, self.kept):
            yield

    @contextmanager
    def _floats(self, meet: Meet | None) -> Iterator[None]:
        if self.reference is None:
            with observing(self.model, self.sites, meet, floats=True):
                yield
        else:
            with following(self.reference, self.sites.values(), meet):
                yield

    def choose(self, site: Site, gathered: Gathered) -> Choice:
        """Solve one problem."""
        grid = self.grids.get(site)
        if grid is None:  # another process's data reached it
            grid = site.quant.grid(site.seen())  # type: ignore[operator]
        choice = choose(self.name, site, grid, gathered, self.solve, self.rounds)
        self.choices[site] = choice
        next(self.bar, None)
        if choice.values is not None:
            self.chosen[site] = choice.values
        return choice

    def finish(self) -> LayerwiseReport:
        """Write what was chosen, and report it."""
        if not self.choices:
            raise GraphError(self._nothing())
        if all(choice.entry.reason.endswith(ROUNDED) for choice in self.choices.values()):
            raise GraphError(
                f"{self.name}: nothing to do. All weights lie on their grids already. Quantize the float model again, "
                "and begin with that."
            )
        with uninterrupted(), restored_on_failure(self.model):
            for choice in self.choices.values():
                choice.fix()
            for choice in self.choices.values():
                choice.write()
        entries = {choice.entry.path: choice.entry for choice in self.choices.values()}
        entries |= {path: Entry(path, "left", why) for path, why in self.left.items()}
        for site in self.met:
            entries.setdefault(site.path, Entry(site.path, "left", "no data reaches it"))
        order = [site.path for site in sites_of(self.model)]
        return LayerwiseReport(self.name, tuple(entries[path] for path in order))


def _agree(one: object, other: object) -> bool:
    """Whether two results are the same but for rounding; False where they hold no floats, which would tell."""
    found = [tensors_in(each.call if isinstance(each, Reached) else each) for each in (one, other)]
    pairs = list(zip(*found, strict=True))
    if any(not a.is_floating_point() and not torch.equal(a, b) for a, b in pairs):
        return False
    floats = any(a.is_floating_point() for a, _ in pairs)
    return floats and difference(*found)[0] <= _REPRODUCED


def _largest(call: Call) -> int:
    """How many samples a forward has, where its tensors say different things."""
    tensors = [each for each in _pytree.tree_leaves(call) if isinstance(each, Tensor)]
    return max((each.shape[0] for each in tensors if each.ndim), default=1)


def _within(path: str, parents: Sequence[str]) -> bool:
    return any(path == parent or path.startswith(f"{parent}.") for parent in parents)
