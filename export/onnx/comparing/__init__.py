"""The parts of a verification: the file on disk, portions of the samples, and torch's side of each run."""

__all__: list[str] = []
