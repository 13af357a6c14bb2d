"""Which layers of a quantized model may have the channels of their inputs scaled together."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ....nn.contexts.switching import unquantized
from ....qcore import TensorQuant
from ...passes.models import Examples
from ...recording.kinds import kind_of
from ...recording.nodes import Graph, Node
from ...recording.recorder import record
from ...regions.divisions import Readers, mean_numbers, readers_of, why_not_divided, why_not_multiplied, writers_of
from ...regions.regions import Regions
from ..walking.sites import Site
from .trials import Trial

__all__ = ["ChannelGroups", "Together"]


@dataclass(frozen=True)
class Together:
    """Layers whose scales are chosen together, since their inputs have some in common.

    Attributes:
        groups: the layers that read the same tensor, for each of the tensors.
        writers: the paths of what divides them.
    """

    groups: tuple[Readers, ...]
    writers: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """All layers."""
        return tuple(path for group in self.groups for path in group.paths)


class ChannelGroups:
    """The groups of a quantized model, recorded with its quantizers off.

    Args:
        model: the quantized model.
        example: to record.
        sites: the weights whose layers may be scaled, by path.
        skip: paths of layers that are left as they are.

    Attributes:
        together: what is to be scaled.
        reasons: why the input of other layers can't be, by path.
        unreached: layers, floats too, that the recording has not seen.
        unchanged: layers whose weights can't be changed at all, as others read them, too.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.graph.layerwise.walking.sites import sites_of
        >>> model = nn.Sequential(nn.LayerNorm(4), qnn.QuantLinear(4, 4), nn.GELU(), qnn.QuantLinear(4, 4))
        >>> found = ChannelGroups(model, torch.ones(1, 4), {site.path: site for site in sites_of(model)})
        >>> [(each.paths, each.writers) for each in found.together]
        [(('1',), ('0',))]
        >>> found.reasons
        {'3': 'its input comes from 2 (GELU)'}
    """

    def __init__(
        self, model: nn.Module, example: Examples, sites: Mapping[str, Site], skip: Collection[str] = ()
    ) -> None:
        self.modules = dict(model.named_modules())
        self.sites = sites
        with unquantized(model):
            self.graph: Graph = record(model, example)
            self.regions = Regions(self.graph, model, norms=True)
            layers = [path for path, each in self.modules.items() if isinstance(each, nn.Linear | _ConvNd)]
            self.unreached = [path for path in layers if not self.graph.calls(path)]
            kept = [path for path in layers if path in sites or not hasattr(self.modules[path], "weight_quant")]
            whys = {path: why_not_multiplied(path, self.regions) for path in kept if path not in skip}
        self.reasons = {path: why for path, why in whys.items() if why and path in sites}
        self.unchanged = frozenset(self.reasons)
        groups = readers_of(self.graph, [path for path, why in whys.items() if not why])
        groups = [group for group in groups if any(path in sites for path in group.paths)]
        held = why_not_divided(groups, self.regions)
        free = []
        for group in groups:
            why = held[group.paths] or self._why_fixed(group)
            if why is None:
                free.append(group)
            else:
                self.reasons |= {path: why for path in group.paths if path in sites}
        self.together = self._joined(free)

    def numbers(self, together: Together, each: Mapping[Readers, Tensor]) -> Tensor:
        """For each scale of the model what divides it: the mean of what its channels ask for; 1 for all others."""
        return mean_numbers({group: each[group] for group in together.groups}, self.regions)

    def is_for_scores(self, path: str) -> bool:
        """Whether the output of a layer goes into scores of attention, or other values that a softmax takes."""
        readers: dict[Node, list[tuple[Node, int]]] = {}
        for node in self.graph.nodes:
            for number, edge in enumerate(node.inputs):
                if edge is not None:
                    readers.setdefault(edge[0], []).append((node, number))
        seen, left = set[Node](), list(self.graph.calls(path))
        while left:
            for node, number in readers.get(left.pop(), ()):
                kind = kind_of(node.function) or node.kind
                if kind in ("softmax", "Softmax", "QuantSoftmax") or (kind == "attention" and number < 2):
                    return True
                if node not in seen and not isinstance(self.modules.get(node.module or ""), nn.Linear | _ConvNd):
                    seen.add(node)
                    left.append(node)
        return False

    def _joined(self, groups: list[Readers]) -> tuple[Together, ...]:
        """Groups with scales in common, together."""
        found: list[list[Readers]] = []
        for group in groups:
            classes = self.regions.sinks[group.paths[0]]
            sharing = [some for some in found if any(each.read(classes, self.regions) for each in some)]
            found = [some for some in found if some not in sharing]
            found.append([each for some in sharing for each in some] + [group])
        return tuple(
            Together(
                tuple(some), tuple(dict.fromkeys(path for each in some for path in writers_of(each, self.regions)))
            )
            for some in found
        )

    def _why_fixed(self, group: Readers) -> str | None:
        """Why what is quantized around a tensor would not survive its division."""
        writers = writers_of(group, self.regions)
        classes = self.regions.sinks[group.paths[0]]
        quantizers = {path: getattr(self.modules[path], "input_quant", None) for path in group.paths}
        quantizers |= {path: getattr(self.modules.get(path), "output_quant", None) for path in writers}
        for node in self.regions.nodes_with(classes):
            for name, each in self.modules[node.module].named_modules() if node.module else ():
                quantizers[f"{node.module}.{name}"] = each if isinstance(each, TensorQuant) else None
        for path, quant in quantizers.items():
            if isinstance(quant, TensorQuant) and not getattr(quant, "dynamic", True):
                return f"{path} has quantized activations with a range, which its division would change"
        for path in writers:
            if path in self.sites and not _is_row_by_row(self.sites[path]):
                return f"{path} has scales that its outputs share, so that dividing some would move the others"
        return None


def _is_row_by_row(site: Site) -> bool:
    """Whether a layer quantizes its outputs alike when some of them are divided."""
    trial = Trial(site)
    outputs = trial.weight.shape[1]
    factors = torch.linspace(1, 3, outputs, dtype=torch.float64, device=trial.weight.device).reshape(1, -1, 1)
    plain, divided = trial.quantized(trial.weight), trial.quantized(trial.weight / factors) * factors
    apart = float((plain - divided).square().sum())
    return apart <= 0.01 * float((plain - trial.weight).square().sum()) + 1e-12 * float(plain.square().sum())
