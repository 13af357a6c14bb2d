"""The integers of a model at work: a run in integers only, compared with the model and with runtimes."""

__all__: list[str] = []
