"""``python -m bitwright.testing.golden.make`` rewrites the golden vectors. It needs ml_dtypes."""

from . import level_vectors
from .levels import LEVELS
from .oracle import FOLDER, FORMATS, written

__all__ = ["main"]


def main() -> None:
    """Write one file per format, and one of blocks."""
    FOLDER.mkdir(exist_ok=True)
    texts = {name: written(each) for name, each in FORMATS.items()}
    texts |= {name: level_vectors.written(each) for name, each in LEVELS.items()}
    texts[level_vectors.BLOCKS] = level_vectors.written_blocks()
    for name, text in texts.items():
        (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
