"""WordPiece, the tokenizer of BERT (Devlin et al., 2018), for uncased English text."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["WordPiece"]


class WordPiece:
    """Sentences to numbers of a vocabulary file with one piece on each line."""

    def __init__(self, vocabulary: Path) -> None:
        lines = vocabulary.read_text(encoding="utf-8").splitlines()
        self.numbers = {piece: number for number, piece in enumerate(lines)}

    def __call__(self, sentences: Sequence[str], limit: int = 256) -> tuple[Tensor, Tensor]:
        """Tokens and mask, both (sentences, tokens of the longest one)."""
        rows = [self._row(sentence, limit) for sentence in sentences]
        tokens = torch.full((len(rows), max(map(len, rows))), self.numbers["[PAD]"])
        mask = torch.zeros_like(tokens)
        for row, into, here in zip(rows, tokens, mask, strict=True):
            into[: len(row)] = torch.tensor(row)
            here[: len(row)] = 1
        return tokens, mask

    def _row(self, sentence: str, limit: int) -> list[int]:
        pieces = [piece for word in _words(sentence) for piece in self._pieces(word)]
        return [self.numbers[piece] for piece in ("[CLS]", *pieces[: limit - 2], "[SEP]")]

    def _pieces(self, word: str) -> list[str]:
        """The longest piece that fits, then the longest of the rest, and so on."""
        found: list[str] = []
        begin = 0
        while begin < len(word):
            prefix = "##" if begin else ""
            ends = range(len(word), begin, -1)
            end = next((end for end in ends if prefix + word[begin:end] in self.numbers), None)
            if end is None:
                return ["[UNK]"]
            found.append(prefix + word[begin:end])
            begin = end
        return found


def _words(sentence: str) -> Iterator[str]:
    """Words and signs, in lower case, without accents."""
    plain = unicodedata.normalize("NFD", sentence.lower())
    plain = "".join(each for each in plain if unicodedata.category(each) != "Mn")
    return (found[0] for found in re.finditer(r"[^\W_]+|[^\w\s]|_", plain))
