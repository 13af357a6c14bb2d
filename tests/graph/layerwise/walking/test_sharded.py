"""Models that FSDP2 has sharded."""

import re

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import bitwright.nn as qnn
from bitwright.graph import GraphError, gptq


def test_a_sharded_model_is_refused():
    model = nn.Sequential(qnn.QuantLinear(4, 2, weight_bit_width=3)).eval()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        sharded = fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        expected = (
            "gptq: 0.weight is sharded over processes, and gptq works on whole matrices. Call it before fully_shard. "
            "Processes that have the whole model may each have a share of the data."
        )
        with pytest.raises(GraphError, match=f"^{re.escape(expected)}$"):
            gptq(sharded, torch.ones(8, 4))
    finally:
        distributed.destroy_process_group()
