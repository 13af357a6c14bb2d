"""A published LSTM, quantized by hand: what its embeddings keep, here and in a file of open length."""

import copy

import onnxruntime
import pytest
import torch

import bitwright.nn as qnn
from bitwright.export import export_onnx_qdq
from bitwright.quantizers import Int8Act, Int16ActPowerOfTwo
from tests.graph.models import packages, real
from tests.graph.models.metrics import cosine


def encoder():
    """The float model, and windows of speech; a skip that says what to install, where they aren't."""
    try:
        return real.speaker_encoder(), real.speech()
    except packages.NotInstalledError as missing:
        pytest.skip(str(missing))


def by_hand(model, windows, cell_quant):
    """The model with 8-bit weights, one scale a channel, and 8-bit hidden states, calibrated on half of the windows."""
    quantized = copy.deepcopy(model)
    quantized.lstm = qnn.QuantLSTM(40, 256, 3, batch_first=True, cell_quant=cell_quant)
    quantized.lstm.load_state_dict(model.lstm.state_dict())
    with qnn.calibrating(quantized), torch.no_grad():
        quantized(windows[::2])
    return quantized.eval()


@pytest.mark.slow
def test_embeddings_of_voices_and_their_file(tmp_path):
    model, windows = encoder()
    with torch.no_grad():
        wanted = model(windows)
        quantized = by_hand(model, windows, Int16ActPowerOfTwo)
        found = quantized(windows)
        short = quantized(windows[:5, :97])
    assert cosine(found, wanted) >= 0.975
    batch, frames = torch.export.Dim("batch"), torch.export.Dim("frames", min=2)
    program = export_onnx_qdq(
        quantized, windows[:3, :20], tmp_path / "voices.onnx", dynamic_shapes=({0: batch, 1: frames},)
    )
    assert [node.op_type for node in program.model_proto.graph.node].count("Scan") == 3
    session = onnxruntime.InferenceSession(tmp_path / "voices.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def in_runtime(x):
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    assert cosine(in_runtime(windows), wanted) == pytest.approx(cosine(found, wanted), abs=1e-3)
    assert cosine(in_runtime(windows[:5, :97].contiguous()), short) > 0.999


@pytest.mark.slow
def test_cells_need_more_than_eight_bits():
    model, windows = encoder()
    with torch.no_grad():
        wanted = model(windows)
        float_cell, eight_bits = (by_hand(model, windows, cell)(windows) for cell in (None, Int8Act))
    assert cosine(float_cell, wanted) >= 0.975
    assert cosine(eight_bits, wanted) < 0.7
