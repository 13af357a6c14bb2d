"""The documentation mentions every public layer, with its own name."""

import re
from pathlib import Path

import pytest

from tests.conformance.examples import LAYERS

PAGES = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
WORDS = {word for page in PAGES for word in re.findall(r"\w+", page.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("name", LAYERS)
def test_the_documentation_mentions_every_layer(name):
    short = re.sub(r"[123]d$", "", name)  # QuantConv1d, QuantConv2d and QuantConv3d as one
    assert {name, short} & WORDS or {f"{short}{number}d" for number in (1, 2, 3)} & WORDS, f"docs/*.md lack {name}"


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_has_an_example_in_its_docstring(name):
    text = LAYERS[name].__doc__ or ""
    assert "Example:" in text
    assert f">>> {'' if name in text.partition('Example:')[2] else name}" in text
    assert name in text.partition("Example:")[2]
