"""The declaration as a value: equal, hashable, printable, picklable, describable."""

import inspect
import pickle

from ...qcore import describe
from ...qcore.declare.inject import QuantizerType, value
from ..registry import register_check
from ..report import Failure
from ..subject import Subject

__all__ = ["declaration"]


@register_check
def declaration(subject: Subject) -> None:
    """The class is a value: equal and hashed alike when rebuilt from its repr or a pickle; `describe` shows it."""
    quantizer = subject.quantizer
    for how, rebuilt in (("its repr", _from_repr(quantizer)), ("a pickle", _from_pickle(quantizer))):
        if rebuilt != quantizer:
            raise Failure(f"a quantizer equal to {quantizer!r} from {how}", f"{rebuilt!r}, which is not equal to it")
        if hash(rebuilt) != hash(quantizer):
            raise Failure(f"the same hash from {how}", "another")
    if subject.quantizer() is not quantizer:
        raise Failure("Q() to be Q", repr(quantizer()))
    if not str(describe(quantizer)):
        raise Failure("a description", "none")


def _from_repr(quantizer: QuantizerType) -> object:
    """What the repr evaluates to where every class and function in it is known by its name."""
    known: dict[str, object] = {}
    for cls in quantizer.__mro__:
        known.setdefault(cls.__name__, cls)
        for item in vars(cls).get("__overrides__", {}).values():
            if inspect.isclass(item) or inspect.isfunction(item) or isinstance(item, value):
                known.setdefault(getattr(item, "__name__", ""), item)
    try:
        return eval(repr(quantizer), known)
    except Exception as error:
        raise Failure(
            "a repr that makes the quantizer again", f"{quantizer!r} ({type(error).__name__}: {error})"
        ) from None


def _from_pickle(quantizer: QuantizerType) -> object:
    try:
        return pickle.loads(pickle.dumps(quantizer))
    except Exception as error:
        raise Failure("a class that pickles", f"{type(error).__name__}: {error}") from None
