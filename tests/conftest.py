"""What every test runs with."""

import torch
import torch._dynamo  # before a test replaces torch.compiler.is_compiling: dynamo looks it up once, on import
from hypothesis import settings

settings.register_profile("bitwright", max_examples=40, derandomize=True, deadline=None, database=None)
settings.load_profile("bitwright")
torch.set_num_threads(1)
