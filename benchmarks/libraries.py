"""The libraries that are compared, by name."""

import importlib

from .layers import Layers, Scheme

__all__ = ["LIBRARIES", "OWN_PROCESS", "layers_of"]

# Where the layers of each are made; imported when first asked for, since no process has all of them installed.
LIBRARIES = {
    "float": ("layers", "Layers"),
    "bitwright": ("layers_bitwright", "BitwrightLayers"),
    "torch.ao": ("layers_ao", "AoLayers"),
    "torchao": ("layers_torchao", "TorchaoLayers"),
    "Brevitas": ("layers_brevitas", "BrevitasLayers"),
}

OWN_PROCESS = "Brevitas"  # it pins another version of `dependencies`


def layers_of(library: str, scheme: Scheme) -> Layers:
    """The layer factory of a library."""
    module, name = LIBRARIES[library]
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)(scheme)
