import json
import re
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import nn

from bitwright.graph import W4, first, last
from bitwright.quantizers import Int8Act, Int8WeightPerChannel, Int8WeightPerTensor
from tests.graph.models import packages, real
from tests.graph.models.zoo import ZOO

FACTORY = "tests.graph.models.zoo:tiny_mobilenet_v2"
TINY = ["--factory", FACTORY, "--size", "32", "--resize", "36", "--batch-size", "4", "--calibration-images", "8"]


@pytest.fixture
def script(example):
    return example("imagenet_ptq")


@pytest.fixture
def folder(tmp_path):
    """Twelve images of three classes."""
    chance = numpy.random.default_rng(0)
    for label in ("apple", "bear", "crab"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(4):
            pixels = chance.integers(0, 256, (40, 50, 3), dtype=numpy.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}.png")
    return tmp_path / "images"


def options_of(script, *arguments):
    return script._parser().parse_args(["--data", "images", *arguments])


def rows_of(path):
    """The numbers of each row of the table, by its name: three shares in percent, then dB."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = re.findall(r"(-?[\d.]+)(?:%| dB)", line)
        if len(cells) >= 3:
            found[re.split(r"\s{2,}", line.strip())[0]] = [float(cell) for cell in cells]
    return found


def test_every_step_runs(script, folder, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    steps = ["--fold", "--equalize", "--calibrate", "mse", "--correct-biases", "--finetune", "1"]
    assert script.main([*TINY, "--data", str(folder), *steps, "--out", str(out)]) == 0
    written = sorted(path.name for path in out.iterdir())
    assert written == ["layers.html", "layers.png", "model.qcdq.onnx", "quantized.pt", "report.txt"]
    rows = rows_of(out / "report.txt")
    assert list(rows) == ["float", "quantized", "fine-tuned"]
    assert rows["float"][2] == 100
    printed = capsys.readouterr().out
    assert "on 12 images" in printed
    assert " 0 differences" in printed
    assert (out / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert {key.partition(".")[0] for key in torch.load(out / "quantized.pt")} == {"features", "classifier"}


def test_weights_and_rules_from_files(script, folder, tmp_path):
    torch.save(ZOO["mobilenet_v2"].build(seed=3).state_dict(), tmp_path / "weights.pt")
    rules = {"rules": [{"type": "torch.nn.Linear", "weight_quant": "Int4WeightPerChannel"}]}
    (tmp_path / "rules.json").write_text(json.dumps(rules), encoding="utf-8")
    options = options_of(script, "--factory", FACTORY, "--weights", str(tmp_path / "weights.pt"))
    assert torch.equal(
        script.float_model(options).classifier[1].weight, ZOO["mobilenet_v2"].build(seed=3).classifier[1].weight
    )
    options = options_of(script, "--factory", FACTORY, "--rules", str(tmp_path / "rules.json"))
    assert script.rules_of(options) == [(nn.Linear, W4)]


def test_rules_from_flags(script):
    layers = {"weight_quant": Int8WeightPerChannel, "weight_bit_width": 4, "input_quant": Int8Act, "input_bit_width": 6}
    flags = ["--weight-bits", "4", "--act-bits", "6"]
    assert script.rules_of(options_of(script, *flags)) == layers
    ends = {"weight_bit_width": 8, "input_bit_width": 8}
    found = script.rules_of(options_of(script, *flags, "--end-bits", "8"))
    assert found == {**layers, first(): ends, last(): ends}
    found = script.rules_of(options_of(script, "--act-bits", "0", "--no-per-channel", "--end-bits", "6"))
    ends = {"weight_bit_width": 6}
    assert found == {"weight_quant": Int8WeightPerTensor, "weight_bit_width": 8, first(): ends, last(): ends}


def test_folders_are_classes(script, folder):
    """In the order of their names, or of their numbers."""
    images = script.ImageFolder(folder, 32, 36)
    assert len(images) == 12
    assert [images[place][1] for place in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    assert images[0][0].shape == (3, 32, 32)
    for name, number in (("apple", "10"), ("bear", "2"), ("crab", "077")):
        (folder / name).rename(folder / number)
    images = script.ImageFolder(folder, 32, 36)
    assert sorted({images[place][1] for place in range(12)}) == [2, 10, 77]


def test_images_are_normalized_and_cropped_from_the_middle(script, tmp_path):
    """A grey image with a white border that the crop leaves out."""
    pixels = numpy.full((40, 60, 3), 255, dtype=numpy.uint8)
    pixels[4:-4, 14:-14] = 128
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png")
    found = script.ImageFolder(tmp_path, 32, 40)[0][0]
    wanted = (torch.tensor(128 / 255) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(found, wanted[:, None, None].expand(3, 32, 32))


def test_scores(script):
    reference = torch.tensor([[3.0, 0, 0], [0, 4, 0]])
    score = script.Score.of("half", torch.tensor([[3.0, 0, 0], [0, 0, 4]]), torch.tensor([0, 0]), reference)
    assert (score.top1, score.top5, score.agreement) == (0.5, 1, 0.5)
    assert score.sqnr == pytest.approx(-1.072, abs=1e-3)  # 10 log10(25 / 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Which model? Write --model mobilenet_v2, or --factory package.module:function."),
        (TINY, "nowhere holds no images in folders, one for each class: nowhere/n01440764/a.jpg"),
        (
            ["--model", "resnet18"],
            "--model needs torchvision or timm. Install one, or write --factory package.module:function.",
        ),
    ],
)
def test_what_is_missing_is_told(script, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=f"^{re.escape(message)}$"):
        script.main(["--data", "nowhere", *arguments])


def test_errors_of_the_library_end_the_script(script, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.json").write_text('{"rules": [{"path": "head", "weight_bit_width": 4}]}', encoding="utf-8")
    with pytest.raises(SystemExit, match=r'^quantize: the rule "head" matched nothing\.'):
        script.main([*TINY, "--data", str(folder), "--rules", "rules.json"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "top1", "sqnr"),
    [([], 90, 17.5), (["--weight-bits", "4", "--correct-biases"], 75, 5)],
    ids=["W8A8", "W4A8"],
)
def test_mobilenet_on_photos(script, tmp_path, flags, top1, sqnr):
    """Published weights, twenty labelled photos of ImageNet, eight of them for calibration."""
    try:
        photos = packages.file_in("foolbox", "data")
        real.mobilenet_v2()
    except packages.NotInstalledError as missing:
        pytest.skip(str(missing))
    for each in (tmp_path / "all", tmp_path / "eight"):
        for number, path in enumerate(sorted(photos.glob("imagenet_*.jpg"))):
            if each.name == "all" or number < 8:
                target = each / path.stem.rpartition("_")[2]
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    data = ["--data", str(tmp_path / "all"), "--calibration-data", str(tmp_path / "eight"), "--batch-size", "4"]
    model = ["--factory", "tests.graph.models.real:mobilenet_v2", "--fold", "--out", str(tmp_path / "out")]
    assert script.main([*model, *data, *flags]) == 0
    rows = rows_of(Path(tmp_path, "out", "report.txt"))
    assert rows["float"][:2] == [90, pytest.approx(97.5, abs=2.5)]
    assert rows["quantized"][0] >= top1
    assert rows["quantized"][3] >= sqnr
