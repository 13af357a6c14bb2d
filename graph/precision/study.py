"""What every score works on: the model on trial under each setting, the batches, and what is asked of the outputs."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...nn.contexts.progress import tracked
from ...nn.contexts.switching import unquantized
from ...qcore import values_of
from ...qcore.models import shown
from ..calibration.calibration import calibrate
from ..errors import GraphError, GraphWarning
from ..measuring.evaluation import evaluating, observed
from ..recording.examples import Call
from .trials import Trial

__all__ = ["Cell", "Loss", "Outputs", "Scored", "Study", "Tried", "differentiable", "listed_batches", "signs"]

Cell = tuple[str, str]
"""A layer, by its path, and the name of a setting."""
Scored = dict[Cell, tuple[float, float]]
"""For each cell the damage, which adds up over layers, and the score as it is shown."""
Loss = Callable[[Any, Any], Tensor]  # what the model returned, the batch as given -> a scalar
Outputs = Callable[[Any], Any]  # what the model returned -> what of it counts


@dataclass
class Tried:
    """One step: a batch through the model with one layer quantized.

    Attributes:
        cell: the layer and the setting.
        floats: the outputs of the float model.
        outputs: those with the layer quantized.
    """

    cell: Cell
    floats: list[Tensor]
    outputs: list[Tensor]


@dataclass
class Study:
    """A model, the settings that are tried on its layers, and batches.

    Attributes:
        base: a copy of the model as it is.
        trials: a copy with each setting in all its layers, by name.
        calls: the arguments of each forward.
        batches: as they were given, labels included; for a loss.
        outputs: takes what counts from what the model returns; None: all of it.
        loss: what the user trains with, or None.
        measure: the user's own measure, or None.
        seed: of everything that is random.
        progress: whether there are bars.
        asked: the call, for messages.

    Example:
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantLinear(2, 2, bias=False)).requires_grad_(False)
        >>> _ = model[0].weight.copy_(torch.eye(2))
        >>> trial = Trial(model, ["0"], "2", dict(weight_bit_width=2))
        >>> study = Study(model, {"2": trial}, [((torch.eye(2),), {})])
        >>> [(each.cell, torch.equal(each.floats[0], each.outputs[0])) for each in study.tried()]
        [(('0', '2'), True)]
    """

    base: nn.Module
    trials: Mapping[str, Trial]
    calls: Sequence[Call]
    batches: Sequence[object] = ()
    outputs: Outputs | None = None
    loss: Loss | None = None
    measure: Callable[[nn.Module], float] | None = None
    seed: int = 0
    progress: bool = False
    asked: str = "sensitivity"

    def __post_init__(self) -> None:
        """Refuse what is no function.

        Raises:
            GraphError: it says what to write.
        """
        if self.loss is not None and not callable(self.loss):
            raise GraphError(
                f"{self.asked}: loss={shown(self.loss)} is not possible: expected a function of what the model "
                "returned and the batch, such as lambda output, batch: F.cross_entropy(output, batch[1])."
            )
        if self.outputs is not None and not callable(self.outputs):
            raise GraphError(
                f"{self.asked}: outputs={shown(self.outputs)} is not possible: expected a function of what the model "
                "returned, such as lambda result: result.logits."
            )

    @property
    def paths(self) -> list[str]:
        """Of the layers."""
        return list(next(iter(self.trials.values())).layers)

    @property
    def cells(self) -> list[Cell]:
        """All of them, layer by layer."""
        return [(path, name) for path in self.paths for name in self.trials]

    def tensors(self, result: object) -> list[Tensor]:
        """The tensors of floating numbers that count in what the model returned.

        Raises:
            GraphError: there are none.
        """
        found = _floats_in(result if self.outputs is None else self.outputs(result))
        if not found:
            raise GraphError(
                f"{self.asked}: among the outputs ({type(result).__name__}) is no tensor of floating numbers. "
                "Say which tensor counts: outputs=lambda result: result.logits."
            )
        return found

    def run(self, model: nn.Module, call: Call) -> list[Tensor]:
        """The outputs for one batch."""
        args, kwargs = call
        return self.tensors(model(*args, **kwargs))

    def tried(self) -> Iterator[Tried]:
        """Every batch through the model, with each layer quantized alone, under each setting.

        Outputs of one batch are held at a time.
        """
        steps = [(call, cell) for call in self.calls for cell in self.cells]
        floats: list[Tensor] = []
        with closing(self.tracked(steps, "forwards")) as items:
            for number, (call, (path, name)) in enumerate(items):
                if number % len(self.cells) == 0:
                    with evaluating(self.base), unquantized(self.base) as model:
                        floats = [each.clone() for each in self.run(model, call)]
                trial = self.trials[name]
                with evaluating(trial.model), trial.only(path) as model:
                    outputs = self.run(model, call)
                yield Tried((path, name), floats, outputs)

    def tracked(self, items: Sequence[Any], unit: str) -> Any:
        """The items, with a bar."""
        return tracked(items, self.asked, unit=unit, shown=self.progress)

    def calibrate(self) -> None:
        """Measure the ranges of activations that settings are about, where these come from data."""
        for trial in self.trials.values():
            quantizers = [each for own in trial.tried.values() for each in own.values()]
            if all(each.calibrated for each in quantizers):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", GraphWarning)  # of quantizers that the setting is not about
                with calibrate(trial.model):
                    for args, kwargs in self.calls:
                        trial.model(*args, **kwargs)

    def check_reached(self) -> None:
        """Refuse layers that no batch reaches: they would seem to suffer from nothing.

        Raises:
            GraphError: there are such layers.
        """
        called: set[str] = set()
        layers = {path: self.base.get_submodule(path) for path in self.paths}
        seen = observed(layers, lambda path, *rest: called.add(path))
        with evaluating(self.base), unquantized(self.base) as model, seen:
            for args, kwargs in self.calls:
                model(*args, **kwargs)
        missed = [path for path in layers if path not in called]
        if missed:
            more = f" and {len(missed) - 3} more" if len(missed) > 3 else ""
            raise GraphError(
                f"sensitivity: no batch reaches {', '.join(missed[:3])}{more}. Pass batches that do, or leave "
                f"{'it' if len(missed) == 1 else 'them'} out: layers=[...]."
            )

    # Losses

    def loss_of(self, result: object, batch: int) -> Tensor:
        """The user's loss of a batch, or a sum of the outputs with random signs.

        The squares of its gradients are, on average, those of the outputs' squared error.
        """
        if self.loss is None:
            generator = torch.Generator().manual_seed(self.seed + batch)
            return torch.stack([(each * signs(each, generator)).sum() for each in self.tensors(result)]).sum()
        return self.scalar(self.loss(result, self.batches[batch]))

    def scalar(self, found: object) -> Tensor:
        """What a user's loss returned.

        Raises:
            GraphError: it is no number, or depends on nothing that the model computes.
        """
        if not isinstance(found, Tensor) or found.numel() != 1 or not found.requires_grad:
            raise GraphError(
                f"{self.asked}: loss must return a tensor of one number that comes from the model's outputs, such as "
                "loss=lambda output, batch: F.cross_entropy(output, batch[1])."
            )
        return found.reshape(())


def _floats_in(result: object) -> list[Tensor]:
    """The tensors of floating numbers in a result of whatever structure, in order."""
    if isinstance(result, Tensor):
        return [values_of(result)] if result.is_floating_point() else []
    if isinstance(result, Mapping):
        parts: Iterable[object] = result.values()
    elif isinstance(result, list | tuple):
        parts = result
    else:
        parts = vars(result).values() if is_dataclass(result) else ()
    return [each for part in parts for each in _floats_in(part)]


def listed_batches(data: object) -> list[object] | None:
    """The batches of data as they were given, to be gone through more than once; None where data is one batch.

    Example:
        >>> listed_batches(iter([1, 2])), listed_batches(torch.ones(2))
        ([1, 2], None)
    """
    if isinstance(data, Tensor | tuple | Mapping | str | bytes) or not isinstance(data, Iterable):
        return None
    return list(data)


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs of the shape of a tensor, the same on every device.

    Example:
        >>> signs(torch.zeros(4), torch.Generator().manual_seed(0)).abs()
        tensor([1., 1., 1., 1.])
    """
    drawn = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return drawn.mul_(2).sub_(1).to(like)


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Evaluation with gradients, by kernels that have second derivatives."""
    with evaluating(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield
