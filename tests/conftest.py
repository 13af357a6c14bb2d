"""What every test runs with."""

import gc

import torch
import torch._dynamo  # before a test replaces torch.compiler.is_compiling: dynamo looks it up once, on import
from hypothesis import settings

settings.register_profile("bitwright", max_examples=40, derandomize=True, deadline=None, database=None)
settings.load_profile("bitwright")
torch.set_num_threads(1)

gc.disable()  # what is imported and collected stays; to look for garbage in it takes longer than many a test


def pytest_collection_finish() -> None:
    """From here on only what tests make is garbage."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()
