"""A model out of named layers and a function."""

from torch import nn

__all__ = ["Net"]


class Net(nn.Module):
    """Named layers, and a forward from a function."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args):
        return self.function(self, *args)
