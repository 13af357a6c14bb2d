from io import StringIO
from pathlib import Path

import pytest
import torch
from torch import nn

from bitwright.export import VerificationReport, VerificationRow, export_onnx_qdq

Console = pytest.importorskip("rich.console").Console

MODELS = ["FloatLeNet", "WeightLeNet", "WeightActLeNet", "WeightActBiasLeNet"]
QUANTIZED_FILES = [f"{model}.{dialect}.onnx" for model in MODELS[1:] for dialect in ("qcdq", "qdq")]


def test_the_demo_runs(example, needs_digits, tmp_path, capsys):
    assert example("lenet").main(["--fast", "--out", str(tmp_path / "new" / "out")]) == 0
    written = {path.name: path for path in (tmp_path / "new" / "out").iterdir()}
    assert sorted(written) == sorted(
        ["FloatLeNet.pt", "FloatLeNet.float.onnx", *QUANTIZED_FILES, "lenet.png", "lenet.txt", "lenet_sizes.png"]
    )
    printed = capsys.readouterr().out
    for text in (printed, written["lenet.txt"].read_text(encoding="utf-8")):
        assert "LeNet-5 on 200 test digits; files compared with torch on 840" in text
        for model in MODELS:
            assert model in text
        rows = [line for line in text.splitlines() if "µs" in line]
        assert len(rows) == 7
        assert all(" 0 / 0 " in row for row in rows)
    assert f"are in {tmp_path / 'new' / 'out'}." in printed.replace("\n", "")
    assert written["lenet.png"].read_bytes().startswith(b"\x89PNG")
    assert written["lenet_sizes.png"].read_bytes().startswith(b"\x89PNG")
    size = {name: path.stat().st_size for name, path in written.items()}
    weights = 61470  # of LeNet-5, its biases left out
    for model in MODELS[1:]:
        assert weights / 2 < size[f"{model}.qdq.onnx"] < weights < size[f"{model}.qcdq.onnx"] < 2 * weights
    assert size["FloatLeNet.float.onnx"] > 4 * weights


def test_the_exit_status_tells_of_differences(example, monkeypatch, tmp_path):
    lenet, files = example("lenet"), example("lenet_files")

    def report(off, on, plain):
        rows = [
            VerificationRow("relu1.act_quant", "activation", "off", 10, off, 1),
            VerificationRow("relu1.act_quant", "activation", "on", 10, on, 2),
        ]
        return VerificationReport([*rows, VerificationRow("logits", "output", "plain", 10, plain)])

    file = files.File(Path("a.qdq.onnx"), "qdq", report(1, 3, 5))
    assert file.differences == (1, 8)
    assert file.tie_flips == (1, 2)
    for found, status in ((report(0, 0, 0), 0), (report(0, 0, 1), 1)):
        file = files.File(Path("a"), "qdq", found)
        run = lenet.Run(example("digits").Digits(*[None] * 4), [None], [0.9], [[file]])
        monkeypatch.setattr(lenet, "_run", lambda *args, run=run: run)
        monkeypatch.setattr(lenet, "_table", lambda *args: "")
        monkeypatch.setattr(lenet, "_bars", lambda *args: [])
        monkeypatch.setattr(lenet, "draw", lambda *args: None)
        monkeypatch.setattr(lenet, "draw_sizes", lambda *args: None)
        assert lenet.main(["--out", str(tmp_path)]) == status


def test_several_seeds_give_mean_and_spread(example, tmp_path):
    """Accuracies are averaged; differences and tie flips of the seeds are added up."""
    lenet, files, digits = example("lenet"), example("lenet_files"), example("digits")
    images = torch.zeros(2, 1, 32, 32)
    path = tmp_path / "a.float.onnx"
    export_onnx_qdq(nn.Flatten(), images[:1], path, input_names=["images"])
    flips = VerificationReport([VerificationRow("relu1.act_quant", "activation", "on", 10, 0, 3)])
    runs = [
        lenet.Run(digits.Digits(images, images, images, images), [nn.Flatten()] * 2, shares, [[file], [file]])
        for shares, file in (
            ([0.50, 0.52], files.File(path, "float", VerificationReport())),
            ([0.60, 0.58], files.File(path, "float", flips)),
        )
    ]
    assert lenet._reached(runs, 0) == "55.0% ± 7.1"
    assert lenet._reached(runs, 1) == "55.0% ± 4.2"
    assert lenet._reached(runs[:1], 1) == "52.0% (+2.0)"
    console = Console(file=StringIO(), width=120)
    console.print(lenet._table(runs))
    printed = console.file.getvalue()
    assert "LeNet-5 on 2 test digits, 2 seeds; files compared with torch on 4" in printed
    assert printed.count("0 / 3") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch-count", "3"], "unrecognized arguments: --epoch-count 3"),
        (["--epochs", "0"], "argument --epochs: '0' is not a whole number, 1 or more"),
        (["--epochs", "few"], "argument --epochs: 'few' is not a whole number, 1 or more"),
    ],
)
def test_impossible_arguments_are_refused(example, capsys, arguments, message):
    with pytest.raises(SystemExit):
        example("lenet").main(arguments)
    assert capsys.readouterr().err.endswith(f"error: {message}\n")
