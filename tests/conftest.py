"""What every test runs with."""

import torch
from hypothesis import settings

settings.register_profile("bitwright", max_examples=40, derandomize=True, deadline=None, database=None)
settings.load_profile("bitwright")
torch.set_num_threads(1)
