"""Models as data: copies, pickles, state dicts."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from .layers import Scheme
from .models import LENET, RESNET18, Network
from .networks import trained
from .timing import Timed
from .workload import Workload

__all__ = ["STORING"]


def pickled(model: nn.Module) -> object:
    """The model, through pickle and back."""
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> object:
    """The state, written by torch.save and read by torch.load."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return torch.load(file)


def state(model: nn.Module) -> object:
    """The state dict."""
    return model.state_dict()


def loaded(model: nn.Module) -> object:
    """The state dict, made and loaded again."""
    return model.load_state_dict(model.state_dict())


def storing(action: Callable[[nn.Module], object], network: Network, library: str) -> Callable[[], float]:
    """Times an action on a W4A4 model."""
    return Timed(partial(action, trained(network, Scheme(4, 4), library)))


ACTIONS = {
    "deepcopy": ("copy.deepcopy", copy.deepcopy),
    "pickle": ("pickle and back", pickled),
    "state-dict": ("state_dict()", state),
    "load": ("load_state_dict(state_dict())", loaded),
    "save": ("torch.save of the state dict, and torch.load", saved),
}

STORING = {
    f"{short}-{key}": Workload(
        f"{name}, W4A4, {what}", ("bitwright", "torch.ao", "Brevitas"), partial(storing, action, network)
    )
    for short, name, network in (("lenet", "LeNet-5", LENET), ("resnet", "ResNet-18", RESNET18))
    for key, (what, action) in ACTIONS.items()
}
