"""Reconstructing the blocks of a model one after the other."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ....nn.contexts.freezing import frozen
from ....nn.contexts.intercepting import quantizers_of
from ....nn.contexts.progress import tracked
from ....nn.contexts.switching import unquantized
from ....qcore import TensorQuant
from ...errors import GraphError
from ...measuring.samples import side_by_side
from ...passes.reports import Entry
from ...recording.examples import Call
from ..problem import Problem, Solution
from ..reports import LayerwiseReport
from ..walking.choosing import Choice
from ..walking.guarding import uninterrupted
from ..walking.masking import Masks
from ..walking.products import Linear
from ..walking.resuming import Checkpoint
from ..walking.sites import Site, sites_of
from ..walking.stages import Kept, Stage, stages_of
from ..walking.walk import _Walk
from .block import Block, outputs_of
from .learned_ranges import LearnedRange
from .learning import Learned, Settings, learn, ranges_of
from .minibatches import minibatches
from .stand_ins import StandIns

__all__ = ["Reconstruction"]


class Reconstruction:
    """What `reconstruct_blocks` knows in between.

    Args:
        name: of the algorithm, for messages.
        model: the quantized model, in evaluation.
        reference: the float model; None for the model itself with its quantizers off.
        calls: the arguments of the forwards.
        settings: how weights are learned.
        blocks: the paths of the blocks; None for those of the chain that there is.
        mask: the keyword argument that says which tokens count; None for all.
        wait_on: where inputs wait, see `Kept`.
        progress: whether a bar shows how far it has come.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        reference: nn.Module | None,
        calls: Sequence[Call],
        settings: Settings,
        blocks: Sequence[str] | None,
        mask: str | None,
        wait_on: str | Path,
        progress: bool,
    ) -> None:
        self.name, self.model, self.reference, self.settings = name, model, reference, settings
        self.wait_on, self.progress = wait_on, progress
        walk = _Walk(name, model, reference, _nothing, True, Masks([]), None, True)
        walk.check()
        self.left, self.sites = walk.left, walk.sites
        whole = side_by_side(model, calls)
        self.calls = calls if whole is None else minibatches(whole, settings.batch_size, settings.seed)
        self.masks = Masks.among(name, model, self.calls, mask)
        self.chain = walk._chain(self.calls[0], walk._look(self.calls[0]), blocks)
        device = next((each.device for each in model.parameters()), torch.device("cpu"))
        self.stand_ins = StandIns(self.sites, torch.Generator(device).manual_seed(settings.seed))
        self.choices: dict[Site, Choice] = {}
        self.entries: dict[str, Entry] = {}  # of blocks
        self.block_of: dict[Site, str] = {}
        self.learned: list[LearnedRange] = []
        self.used: dict[TensorQuant, None] = {}  # quantizers of activations in the blocks so far
        self.number = 0

    # One block after the other

    def go(self, saved: Checkpoint | None) -> None:
        """Reconstruct all; the model stays as it is."""
        try:
            if saved is not None:
                self._resume(saved)
            self._go(saved)
        finally:
            for each in self.learned:
                each.restore()

    def _go(self, saved: Checkpoint | None) -> None:
        floats = self.model if self.reference is None else self.reference
        with ExitStack() as stack:
            steps = stack.enter_context(closing(stages_of(self.model, self.chain, self.calls, self.wait_on)))
            shadow = stack.enter_context(closing(stages_of(floats, self.chain, self.calls, self.wait_on)))
            leaving: list[Site] = []
            while True:
                with self.stand_ins.standing(self.model):
                    found = next(steps, None)
                for site in leaving:  # their weights run no more
                    self.choices[site].pack()
                    self.stand_ins.chosen.pop(site, None)
                with self._floats():
                    beside = next(shadow, None)
                if found is None or beside is None:
                    return
                self._stage(*found, *beside)
                if saved is not None:
                    saved.more = self._more()
                    saved.save(self.choices)
                name = found[0].name
                leaving = [site for site, block in self.block_of.items() if name and block == name]

    @contextmanager
    def _floats(self) -> Iterator[None]:
        if self.reference is None:
            with unquantized(self.model):
                yield
        else:
            yield

    def _stage(self, stage: Stage, kept: Kept, float_stage: Stage, float_kept: Kept) -> None:
        """Reconstruct one block."""
        start = time.perf_counter()
        taken = self._taken(stage)
        number, self.number = self.number, self.number + 1
        with closing(Kept(self.wait_on)) as targets:
            with self._floats():
                for n, call in enumerate(float_kept):
                    targets.append(((outputs_of(float_stage(call, n), taken),), {}))
            self._reconstruct(stage, kept, float_kept, targets, number, taken, start)

    def _reconstruct(
        self, stage: Stage, kept: Kept, floats: Kept, targets: Kept, number: int, taken: int | None, start: float
    ) -> None:
        inside = self.chain is not None and 0 < number <= len(self.chain.paths)
        block = Block(self._name(stage, number), stage, kept, floats if inside else None, targets, self._weights, taken)
        known = dict(self.stand_ins.grids)
        self.stand_ins.met = {}
        with self.stand_ins.standing(self.model):
            with frozen(self.model):
                before = block.errors()
            sites = [site for site in self.stand_ins.grids if site not in known and site not in self.choices]
            sites = [site for site in sites if self._movable(site)]
            fresh = [each for each in self.stand_ins.met if each not in self.used]
            self.used |= dict.fromkeys(fresh)
            if block.name in self.entries or (not sites and not fresh):
                return
            ranges = ranges_of(fresh, self.settings)
            self.learned += ranges
            if not sites and not ranges:
                return
            label = f"{self.name} {block.name}".strip()
            bar = tracked(range(self.settings.iterations), label, unit="steps", shown=self.progress)
            with closing(bar) as steps:
                learned = learn(self.model, block, self.stand_ins, sites, ranges, before, self.settings, steps)
        self._choose(block, learned, time.perf_counter() - start)

    def _name(self, stage: Stage, number: int) -> str:
        """What the report calls a block; the path of a module, where it is one."""
        if self.chain is None:
            return ""
        return stage.name or (f"before {self.chain.paths[0]}" if number == 0 else f"after {self.chain.paths[-1]}")

    def _taken(self, stage: Stage) -> int | None:
        """Which of the tensors that a stage returns is what the next one gets; None for all."""
        chain = self.chain
        if chain is None or len(chain.paths) < 2:
            return None
        if self.number == 0:
            return chain.slots[0]
        return chain.taken[self.number - 1] if self.number < len(chain.paths) else None

    def _movable(self, site: Site) -> bool:
        if isinstance(self.stand_ins.grids[site].scale, Tensor) and site.parameter.is_floating_point():
            return True
        self.left[site.path] = "its weight is no float"
        return False

    def _weights(self, number: int, squares: Tensor) -> Tensor | None:
        """Which tokens of a batch count, for its outputs."""
        mask = self.masks.of(number, Linear(), squares, None)[0] if squares.ndim > 1 else None
        return None if mask is None else mask.to(squares).reshape(*squares.shape[:-1], 1)

    def _choose(self, block: Block, learned: Learned, seconds: float) -> None:
        """Keep what was learned, if it is better."""
        values = learned.values
        if not all(learned.soft[site].stays(each) for site, each in values.items()):
            why = "a quantizer would move weights that lie on its grid already"
            values = {}
        elif learned.before.total == 0:
            why = "its output is that of the float model"
        else:
            why = f"{self.name} is not better than what was there"
        better = learned.after.total < learned.before.total and (bool(values) or not learned.soft)
        after = learned.after if better else learned.before
        if not better:
            for each in learned.ranges:
                each.set(each.start)
        figures = {"before": learned.before.share, "after": after.share, "seconds": seconds}
        where = block.name or "the model"
        action, reason = (self.name, "") if better else ("left", why)
        self.entries[block.name] = Entry(block.name, action, reason, figures)
        for site, soft in learned.soft.items():
            self.block_of[site] = block.name
            if not better:
                self.choices[site] = Choice(site, Entry(site.path, "left", f"with {where}"))
                continue
            entry = Entry(site.path, self.name, f"with {where}", soft.figures(values[site]))
            self.choices[site] = Choice(site, entry, soft.grid, values[site])
            self.stand_ins.chosen[site] = values[site]

    # Going on, and the end

    def _more(self) -> dict[str, Any]:
        paths = {each: path for path, each in quantizers_of(self.model).items()}
        return {
            "blocks": {path: [each.action, each.reason, dict(each.figures)] for path, each in self.entries.items()},
            "weights": {site.path: block for site, block in self.block_of.items()},
            "ranges": {paths[each.quant]: each.state() for each in self.learned},
        }

    def _resume(self, saved: Checkpoint) -> None:
        self.choices |= saved.choices()
        for site, choice in self.choices.items():
            if choice.chosen is not None:
                self.stand_ins.chosen[site] = choice.chosen
            self.block_of[site] = saved.more["weights"][site.path]
        quantizers = quantizers_of(self.model)
        for path, (action, reason, figures) in saved.more.get("blocks", {}).items():
            self.entries[path] = Entry(path, action, reason, figures)
        for path, state in saved.more.get("ranges", {}).items():
            self.used.setdefault(quantizers[path])
            self.learned += ranges_of([quantizers[path]], self.settings)
            self.learned[-1].set([each.to(old) for each, old in zip(state, self.learned[-1].start, strict=True)])

    def finish(self) -> LayerwiseReport:
        """Write what was chosen, and report it."""
        if not self.choices and not self.entries:
            raise GraphError(
                f"{self.name}: nothing to do. No data reaches a weight of the {type(self.model).__name__}."
            )
        with uninterrupted():
            for choice in self.choices.values():
                choice.fix()
            for choice in self.choices.values():
                choice.write()
            for each in self.learned:
                each.write()
        weights = {site.path: choice.entry for site, choice in self.choices.items()}
        weights |= {path: Entry(path, "left", why) for path, why in self.left.items()}
        for site in self.sites.values():
            weights.setdefault(site.path, Entry(site.path, "left", "no data reaches it"))
        return LayerwiseReport(self.name, tuple(self._ordered(weights)))

    def _ordered(self, weights: dict[str, Entry]) -> Iterator[Entry]:
        """Each block, and the weights in it."""
        owners = {site.path: block for site, block in self.block_of.items()}
        rest = [site.path for site in sites_of(self.model)]
        for name, entry in self.entries.items():
            inside = [path for path in rest if owners.get(path) == name]
            rest = [path for path in rest if path not in inside]
            if inside == [name]:  # a block that is one layer
                own = weights[name]
                yield Entry(name, entry.action, entry.reason, {**entry.figures, **own.figures})
                continue
            yield entry
            yield from (weights[path] for path in inside)
        yield from (weights[path] for path in rest if path in weights)


def _nothing(path: str, problem: Problem) -> Solution | None:
    """What a walk would solve: there is no such walk here."""
    return None
