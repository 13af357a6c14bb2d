"""Many small arrays in one file of few parts: an entry of its own for each would cost more than what is in it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def save(path: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write arrays by name, and facts that JSON can say."""
    index: dict[str, tuple[str, tuple[int, ...]]] = {}
    parts: dict[str, list[np.ndarray]] = {}
    for name, each in arrays.items():
        index[name] = (each.dtype.name, each.shape)
        parts.setdefault(each.dtype.name, []).append(each.reshape(-1))
    text = json.dumps({"index": index, "facts": facts}).encode()
    joined = {kind: np.concatenate(each) for kind, each in parts.items()}
    np.savez_compressed(path, json=np.frombuffer(text, np.uint8), **joined)


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and facts of a file that `save` wrote."""
    parts = dict(np.load(path))
    said = json.loads(parts.pop("json").tobytes())
    taken = dict.fromkeys(parts, 0)
    arrays = {}
    for name, (kind, shape) in said["index"].items():
        count = int(np.prod(shape))
        arrays[name] = parts[kind][taken[kind] : taken[kind] + count].reshape(shape)
        taken[kind] += count
    return arrays, said["facts"]
