"""``python -m bitwright.testing.golden.make`` rewrites the golden vectors. It needs ml_dtypes."""

from .oracle import FOLDER, FORMATS, written

__all__ = ["main"]


def main() -> None:
    """Write one file per format."""
    FOLDER.mkdir(exist_ok=True)
    for each in FORMATS.values():
        (FOLDER / f"{each.name}.json").write_text(written(each), encoding="utf-8")


if __name__ == "__main__":
    main()
