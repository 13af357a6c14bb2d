"""What a model computes, seen by running it once: modules and functions, who feeds whom, where in the source."""

__all__: list[str] = []
