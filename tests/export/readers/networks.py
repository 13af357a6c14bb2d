"""Networks for the readers of QONNX files, trained for one step, with inputs."""

import json
import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_qonnx
from bitwright.qcore import values_of
from bitwright.quantizers import (
    Int8Act,
    Int8ActPowerOfTwo,
    Int8WeightPerChannel,
    Int8WeightPerTensor,
    Int8WeightPerTensorPowerOfTwo,
    Uint8Act,
    Uint8ActPowerOfTwo,
)

POWERS = {"weight": Int8WeightPerTensorPowerOfTwo, "relu": Uint8ActPowerOfTwo, "entry": Int8ActPowerOfTwo}
FLOATS = {"weight": Int8WeightPerTensor, "relu": Uint8Act, "entry": Int8Act}
CHANNELS = {**FLOATS, "weight": Int8WeightPerChannel}
IMAGES, ROWS = (4, 4, 8, 8), (4, 16)


def chain(*layers, entry=Int8ActPowerOfTwo):
    return nn.Sequential(qnn.QuantIdentity(act_quant=entry, return_quant_tensor=True), *layers)


def relu(act=Uint8ActPowerOfTwo):
    return qnn.QuantReLU(act_quant=act, bit_width=4)


def conv(*shape, weight=Int8WeightPerTensorPowerOfTwo, **settings):
    return qnn.QuantConv2d(*shape, weight_quant=weight, weight_bit_width=4, **settings)


def linear(*shape, weight=Int8WeightPerTensorPowerOfTwo, **settings):
    return qnn.QuantLinear(*shape, weight_quant=weight, weight_bit_width=4, **settings)


def lenet(kinds):
    """LeNet-5 on images of 16 x 16, its first batch norm kept."""
    weight, act = {"weight": kinds["weight"]}, kinds["relu"]
    return chain(
        *(conv(4, 6, 5, padding=2, **weight), nn.BatchNorm2d(6), relu(act), nn.MaxPool2d(2)),
        *(conv(6, 16, 5, **weight), relu(act), nn.MaxPool2d(2), nn.Flatten()),
        *(linear(64, 30, **weight), relu(act), linear(30, 20, **weight), relu(act), linear(20, 10, **weight)),
        entry=kinds["entry"],
    )


def write(folder: Path, name: str, model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """Export a model and inputs of the shape into a folder; what the model makes of them."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))
    with torch.no_grad():
        model.train()(x)
    qnn.finish_calibration(model)
    model.eval()
    export_qonnx(model, x[:1], folder / f"{name}.onnx")
    np.savez(folder / f"{name}.npz", inputs=x.numpy())
    with torch.no_grad():
        return values_of(model(x))


def read(python: str, script: str, folder: Path) -> dict:
    """What a script of this folder prints, run by a Python."""
    command = [python, "-I", "-W", "ignore", str(Path(__file__).with_name(script)), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def found(folder: Path, name: str, what: str) -> torch.Tensor:
    return torch.from_numpy(np.load(folder / f"{name}.found.npz")[what])
