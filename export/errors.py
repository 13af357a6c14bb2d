"""The error of an export."""

from ..qcore.errors import BitwrightError

__all__ = ["ExportError", "with_causes"]


class ExportError(BitwrightError):
    """A model can't be exported as asked, or the exported file does not agree with the model.

    The model is as it was before the call, and a file of that name, if there was one, is untouched.

    Example:
        >>> print(with_causes("QDQ can't express 1 quantizer:", ["act: 24 bits. Write bit_width=16."]))
        QDQ can't express 1 quantizer:
          act: 24 bits. Write bit_width=16.
    """


def with_causes(headline: str, causes: list[str]) -> str:
    """A headline and one indented line for each cause."""
    return "\n  ".join([headline, *causes])
