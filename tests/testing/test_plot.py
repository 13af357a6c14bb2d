"""Plots: what they say in words; their looks are looked at."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import BitwrightError
from bitwright.quantizers import (
    BinaryAct,
    Fp4e2m1Act,
    Int4Act,
    Int8WeightPerChannel,
    Int32Bias,
    NF4Weight,
    ShiftedUint4Act,
)
from bitwright.testing import plot_model, plot_quantizer

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    ("quantizer", "grid"),
    [
        (Int4Act, "Grid: 16 integers, -8 to 7"),
        (ShiftedUint4Act, "Grid: 16 integers, 0 to 15"),
        (Int8WeightPerChannel, "Grid: 255 integers, -127 to 127"),
        (Int32Bias, "Grid: 4294967296 integers, -2147483648 to 2147483647"),
        (Fp4e2m1Act, "Grid: 15 levels of e2m1fn, -6 to 6"),
        (NF4Weight, "Grid: 16 levels of nf4, -1 to 1"),
        (BinaryAct, "Grid: 2 levels of binary, -1 to 1"),
    ],
    ids=repr,
)
def test_quantizer_on_one_page(quantizer, grid, tmp_path):
    figure = plot_quantizer(quantizer)
    assert [axes.get_title() for axes in figure.axes] == ["Staircase", "Error", "Gradient", grid]
    figure.savefig(tmp_path / "quantizer.png", dpi=40)


def test_curves_are_the_quantizer():
    staircase, error, gradient, _ = plot_quantizer(Int4Act, scale=0.5).axes
    x, y = staircase.lines[1].get_data()
    assert (y.min(), y.max()) == (-4.0, 3.5)
    assert x.min() < -4.5
    assert abs(error.lines[0].get_ydata()[abs(x) < 3.5]).max() <= 0.5
    assert sorted(set(gradient.lines[0].get_ydata())) == [0.0, 1.0]


def test_curves_of_a_minifloat():
    staircase, error, *_ = plot_quantizer(Fp4e2m1Act, scale=0.5).axes
    x, y = staircase.lines[1].get_xdata(), np.asarray(staircase.lines[1].get_ydata())
    assert sorted(set(np.abs(y).tolist())) == [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3]
    assert abs(error.lines[0].get_ydata()[abs(x) < 3]).max() <= 1


def test_model_with_other_levels_than_integers():
    model = nn.Sequential(qnn.QuantIdentity(act_quant=Fp4e2m1Act, scale=1.0))
    figure = plot_model(model, torch.tensor([-9.0, 0.0, 0.6, 6.0]))
    assert figure.axes[0].get_title() == "0.act_quant: e2m1fn\n25 % clipped, 11 of 15 levels of e2m1fn dead"


def test_module_as_it_stands():
    layer = qnn.QuantReLU(bit_width=4, scale=0.25)
    figure = plot_quantizer(layer.act_quant)
    assert figure.axes[3].get_title() == "Grid: 16 integers, 0 to 15"
    assert figure.get_suptitle() == "IntQuant(uint4, per tensor, float scale)"


def test_model_counts_clipped_values_and_dead_integers():
    model = nn.Sequential(
        qnn.QuantIdentity(bit_width=2, scale=1.0), nn.Identity(), qnn.QuantReLU(bit_width=2, scale=1.0)
    )
    model.train()
    figure = plot_model(model, torch.tensor([-1.0, 0.0, 0.2, 9.0]))
    assert [axes.get_title() for axes in figure.axes] == [
        "0.act_quant: int2\n25 % clipped, 1 of 4 integers dead",
        "2.act_quant: uint2\n0 % clipped, 2 of 4 integers dead",
    ]
    assert model.training
    assert model[0].act_quant.intercept is None


def test_model_without_quantizers_is_refused():
    with pytest.raises(BitwrightError, match="nothing in Linear quantizes"):
        plot_model(nn.Linear(2, 2), torch.ones(1, 2))


def test_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        BitwrightError, match=r"plot_quantizer needs the package matplotlib: pip install bitwright\[plot\]"
    ):
        plot_quantizer(Int4Act)
