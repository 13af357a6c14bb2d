"""What one call of rotate does to the copy of a model."""

from collections.abc import Collection
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ...nn.hadamard_transform import HadamardTransform
from ..errors import GraphError
from ..passes.reports import Entry, Report
from ..recording.nodes import Graph
from .features import Features
from .learning import Learned
from .online import key_products, put_before, rotate_keys
from .rotations import Rotations
from .spaces import Space, Turn
from .weights import Weights

__all__ = ["Changes"]

LAYERS = (nn.Linear, nn.Embedding, nn.MultiheadAttention, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Changes:
    """Rotations on their way into a model, and what was done.

    Args:
        model: the user's.
        rotated: the copy that is changed.
        graph: the recording.
        features: what was found in it.
        spaces: what is rotated without a cost.
        rotations: the matrices.

    Attributes:
        learned: how these were learned; None if they were not.
    """

    def __init__(
        self,
        model: nn.Module,
        rotated: nn.Module,
        graph: Graph,
        features: Features,
        spaces: list[Space],
        rotations: Rotations,
    ) -> None:
        self.model, self.rotated, self.graph, self.features = model, rotated, graph, features
        self.rotations = rotations
        self.spaces = [space for space in spaces if rotations.block(space.size) > 1]
        self.weights = Weights(model, rotated, self.spaces)
        self.learned: Learned | None = None
        self._count = len(self.spaces)
        self._inputs: dict[str, str] = {}
        self._inside: dict[str, str] = {}
        self._outputs: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._costs: dict[str, float] = {}
        self._sites: list[Entry] = []
        self._names = {id(each): path for path, each in model.named_parameters()}

    def _transform(self, size: int) -> HadamardTransform:
        self._count += 1
        return self.rotations.transform(size, self._count)

    def transform(self, wanted: Collection[str], skip: list[str]) -> None:
        """Put transforms before layers."""
        linear = [path for path, each in self.model.named_modules() if isinstance(each, nn.Linear)]
        for glob in skip:
            if not any(fnmatchcase(path, glob) for path in linear):
                raise GraphError(f"rotate: skip={glob!r} matches no layer. The layers are {', '.join(linear)}.")
        read = {turn.layer for space in self.spaces for turn in space.readers}
        writing = self._stream_writers()
        for path in linear:
            if path in read or not ("layers" in wanted or ("hidden" in wanted and path in writing)):
                continue
            skipped = any(fnmatchcase(path, glob) for glob in skip)
            why = "it is skipped" if skipped else self._why_not(path)
            if why:
                self._reasons[path] = why
            else:
                self._put(path)

    def _stream_writers(self) -> set[str]:
        """The layers whose outputs residual sums add."""
        classes = self.features.classes
        summed = torch.cat([torch.zeros(0, dtype=torch.int64), *(each.flatten() for each in self.features.summed)])
        numbers = classes.of(summed.unique())
        return {each.layer for each in self.features.writings if bool(torch.isin(classes.of(each.ids), numbers).any())}

    def _why_not(self, path: str) -> str:
        layer = self.model.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        if not self.graph.calls(path):
            return "no example reaches it"
        if path in self.features.computed:
            return self.features.computed[path]
        if self.rotations.block(layer.in_features) == 1:
            return f"no Hadamard matrix divides its {layer.in_features} inputs"
        return ""

    def _put(self, path: str) -> None:
        """W becomes W H, behind a transform x H."""
        layer = self.rotated.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        weight = f"{path}.weight" if path else "weight"
        self.weights.add(weight)
        rotation = self._transform(layer.in_features).to(layer.weight.device)
        self.weights.turn(Turn(path, weight, 1, 0, layer.in_features), rotation)
        put_before(self.rotated, path, rotation)
        start = f"{path}." if path else ""
        self._costs[path] = rotation.additions / layer.out_features
        self._inputs[path] = f"input rotated by {start}rotation ({self.rotations.text(layer.in_features)})"

    def rotate_keys(self) -> None:
        """Let queries and keys be rotated where they meet."""
        for path, layer in self.model.named_modules():
            if isinstance(layer, nn.MultiheadAttention) and self.graph.calls(path):
                self._sites.append(Entry(f"{path}.keys", "left", "its attention is computed inside of it"))
        for node in {node.path: node for node in key_products(self.graph)}.values():
            try:
                name, size = rotate_keys(self.rotated, node, self._transform)
            except GraphError as error:
                self._sites.append(Entry(node.path, "left", str(error).rstrip(".")))
                continue
            self._sites.append(Entry(node.path, f"queries and keys rotated by {name} ({self.rotations.text(size)})"))

    def fuse(self) -> None:
        """Put the parameters behind the rotations of spaces into the copy; this costs nothing at run time."""
        numbered = enumerate(self.spaces)
        self.weights.write({each.name: self.rotations.transform(each.size, number) for number, each in numbered})

    def matrices(self) -> dict[str, Tensor]:
        """The rotation of each space, by its name, to be learned."""
        device = next((each.device for each in self.weights.parameters.values()), None)
        numbered = enumerate(self.spaces)
        return {each.name: self.rotations.matrix(each.size, number).to(device) for number, each in numbered}

    # The report

    def report(self) -> Report:
        """What was done to every layer, and why others were left."""
        self._name_fused()
        entries: list[Entry] = []
        parameters = {turn.layer for space in self.spaces for turn in space.writers if turn.layer == turn.parameter}
        entries += [Entry(path, "rotated", self._text(self._size(path))) for path in sorted(parameters)]
        layers = [path for path, layer in self.model.named_modules() if _is_layer(layer)]
        others = [each for each in (*self._inputs, *self._outputs) if each not in layers and each not in parameters]
        entries += [self._entry(path) for path in dict.fromkeys([*layers, *others])]
        figures = {} if self.learned is None else self.learned.figures
        return Report("rotate", (*entries, *self._norms(), *self._sites), figures=figures)

    def _name_fused(self) -> None:
        """What was done to the layers of spaces."""
        for space in self.spaces:
            text = self._text(space.size)
            reading, writing = ({turn.layer for turn in turns} for turns in (space.readers, space.writers))
            both = reading & writing if space.kind == "values" else set[str]()
            self._inside |= dict.fromkeys(both, f"values rotated ({text})")
            self._inputs |= dict.fromkeys(reading - both, f"input rotated ({text})")
            self._outputs |= dict.fromkeys(writing - both, f"output rotated ({text})")

    def _text(self, size: int) -> str:
        text = self.rotations.text(size)
        if self.learned is None:
            return text
        return f"learned from {text}" if self.learned.kept else f"{text}, nothing better was learned"

    def _size(self, parameter: str) -> int:
        return next(space.size for space in self.spaces for turn in space.writers if turn.parameter == parameter)

    def _entry(self, path: str) -> Entry:
        done = [each[path] for each in (self._inputs, self._inside, self._outputs) if path in each]
        if not done:
            return Entry(path, "left", self._reasons.get(path) or self._why_left(path))
        notes = [
            f"{parameter} no longer shared with {' and '.join(others)}"
            for parameter, others in self.weights.untied.items()
            if parameter.rpartition(".")[0] == path
        ]
        weights = [each for each in self._turned(path) if not each.endswith("bias")]
        before = max(_peak(_of(self.model, each)) for each in weights)
        after = max(_peak(self.weights.parameters[each]) for each in weights)
        figures = {"peak before": before, "peak after": after}
        if path in self._costs:
            figures["cost"] = self._costs[path]
        return Entry(path, ", ".join(done), "; ".join(notes), figures)

    def _turned(self, path: str) -> list[str]:
        """The parameters of a layer that rotations change."""
        found = [turn.parameter for space in self.spaces for turn in space.turns if turn.layer == path]
        found = [each for each in found if each in self.weights.parameters]
        return list(dict.fromkeys([*found, *(each for each in self.weights.parameters if each == f"{path}.weight")]))

    def _why_left(self, path: str) -> str:
        if not self.graph.calls(path):
            return "no example reaches it"
        if path in self.features.computed:
            return self.features.computed[path]
        ids = [each.ids for each in self.features.readings if each.matrix.layer == path]
        found = [self.features.why_held(self.features.classes.of(each)) for each in ids]
        why = next((each for each in found if each), None)
        return f"its input can't be rotated: {why}" if why else "it was not asked for"

    def _norms(self) -> list[Entry]:
        """Norms whose gain was folded into what reads them."""
        found: dict[str, list[str]] = {}
        centered: dict[str, bool] = {}
        for space in self.spaces:
            for reading in space.readings:
                if reading.norm is not None:
                    found.setdefault(reading.norm.path, []).append(reading.matrix.layer)
                    centered[reading.norm.path] = reading.norm.centered
        return [
            Entry(
                path,
                f"folded into {', '.join(dict.fromkeys(readers))}",
                "it is an RMSNorm now: what writes the stream has a mean of zero" if centered[path] else "",
            )
            for path, readers in found.items()
        ]


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, LAYERS) and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


def _of(model: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _peak(weight: Tensor) -> float:
    """The largest weight over the root mean square of all."""
    weight = weight.detach().double()
    return float(weight.abs().max() / weight.square().mean().sqrt().clamp(min=1e-300)) if weight.numel() else 0.0
