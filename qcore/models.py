"""Checking that what a function got for a model is one."""

from typing import Any

from torch import nn

from .errors import BitwrightError, QuantizerError

__all__ = ["require_model", "shown"]


def require_model(call: str, given: Any, error: type[BitwrightError] = QuantizerError) -> None:
    """Refuse whatever is not a model, with an error that names the function and says what to pass.

    Args:
        call: the function that the user called.
        given: its model.
        error: the class of the error.

    Raises:
        BitwrightError: of the class asked for.

    Example:
        >>> require_model("frozen", nn.Linear)
        Traceback (most recent call last):
        bitwright.qcore.errors.QuantizerError: frozen: Linear is a class, not a model. Pass an instance of it: \
Linear(...).
    """
    if isinstance(given, nn.Module):
        return
    if isinstance(given, type) and issubclass(given, nn.Module):
        name = given.__name__
        raise error(f"{call}: {name} is a class, not a model. Pass an instance of it: {name}(...).")
    if isinstance(given, (list, tuple)) and given and all(isinstance(each, nn.Module) for each in given):
        raise error(
            f"{call}: a {type(given).__name__} of modules is not a model. Pass one module that holds them: "
            "nn.ModuleList([...])."
        )
    raise error(f"{call}: {shown(given)} is not a model. Pass a torch.nn.Module, such as qnn.QuantLinear(8, 4).")


def shown(thing: object) -> str:
    """A wrong object as an error shows it: its repr where that is short, else its type.

    Example:
        >>> shown(5), shown("x" * 99)
        ('5', 'an object of type str')
    """
    text = repr(thing)
    return text if len(text) <= 60 and "\n" not in text else f"an object of type {type(thing).__name__}"
