"""The texts that OneFormer is trained with: a list that describes the objects of an image, and CLIP's tokens of it.

Inference needs neither. The vocabulary comes with the package open_clip_torch (``pip install 'mask2former[text]'``),
of which nothing is imported, or from a file: CLIP's ``bpe_simple_vocab_16e6.txt.gz``.
"""

from __future__ import annotations

import functools
import gzip
import html
import importlib.util
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from mask2former.errors import ConfigError

_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_PACKAGE = "open_clip"
_SPLITTERS: tuple[str, ...] = ("ftfy", "regex")  # packages that clean and split texts
_NUM_MERGES = 49152 - 256 - 2  # lines of the file that CLIP uses, after its heading
_START, _END = "<|startoftext|>", "<|endoftext|>"
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_WORD_END = "</w>"
_ARTICLES = {"instance": "an"}
_ADVICE = "pip install 'mask2former[text]' brings it, or INPUT.TEXT_VOCABULARY names the file"


def describe_objects(class_ids: Sequence[int], *, class_names: Sequence[str], task: str, num_texts: int) -> list[str]:
    """Return ``num_texts`` texts: one for each object, in the order of the classes, then the task's filler.

    Objects in excess are left out, as published.
    """
    counts = Counter(class_ids)
    texts = [f"a photo with a {name}" for index, name in enumerate(class_names) for _ in range(counts[index])]
    filler = f"{_ARTICLES.get(task, 'a')} {task} photo"
    return (texts + [filler] * num_texts)[:num_texts]


class ClipTokenizer:
    """Byte-pair encoding with CLIP's vocabulary."""

    def __init__(self, vocabulary: str = "") -> None:
        """``vocabulary``: the file; by default that of the package open_clip_torch.

        Raises:
            ConfigError: there is no such file or package, or it is not CLIP's vocabulary.
        """
        merges = _read_merges(_find_vocabulary(vocabulary))
        letters = list(_byte_letters().values())
        units = [*letters, *(letter + _WORD_END for letter in letters), *("".join(pair) for pair in merges)]
        self.ids = {unit: index for index, unit in enumerate([*units, _START, _END])}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._pieces: dict[str, list[int]] = {}

    def encode(self, text: str, *, length: int) -> list[int]:
        """Return the ids of a text between those of start and end, cut or padded by zeros to ``length``."""
        ids = [self.ids[_START], *(index for piece in _split(text) for index in self._encode_piece(piece))]
        ids = [*ids[: length - 1], self.ids[_END]]
        return [*ids, *[0] * (length - len(ids))]

    def encode_all(self, texts: Sequence[str], *, length: int) -> torch.Tensor:
        """Return the ids (N, length) int64 of texts, each distinct one encoded once."""
        rows = {text: self.encode(text, length=length) for text in dict.fromkeys(texts)}
        return torch.from_numpy(np.array([rows[text] for text in texts], np.int64).reshape(len(texts), length))

    def _encode_piece(self, piece: str) -> list[int]:
        if piece not in self._pieces:
            self._pieces[piece] = [self.ids[unit] for unit in self._merge(piece)]
        return self._pieces[piece]

    def _merge(self, piece: str) -> list[str]:
        """Return the units of a piece: pairs are joined, the earliest of the vocabulary's merges first."""
        if piece in (_START, _END):
            return [piece]
        letters = [_byte_letters()[byte] for byte in piece.encode("utf-8")]
        units = [*letters[:-1], letters[-1] + _WORD_END]
        while len(units) > 1:
            best = min(pairwise(units), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            units = list(_join_pair(units, best))
        return units


def _join_pair(units: Sequence[str], pair: tuple[str, str]) -> Iterator[str]:
    index = 0
    while index < len(units):
        is_pair = tuple(units[index : index + 2]) == pair
        yield "".join(pair) if is_pair else units[index]
        index += 2 if is_pair else 1


def _split(text: str) -> list[str]:
    import ftfy
    import regex

    cleaned = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.findall(_PIECES, " ".join(cleaned.split()).lower(), regex.IGNORECASE)  # type: ignore[no-any-return]


@functools.cache
def _byte_letters() -> Mapping[int, str]:
    """Return a printable letter for each byte: itself where it is printable, else one from 256 on."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    return {**{byte: chr(byte) for byte in kept}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


def _find_vocabulary(file: str) -> Path:
    if file and not Path(file).is_file():
        raise ConfigError(f"INPUT.TEXT_VOCABULARY: there is no file {file}")
    needed = _SPLITTERS if file else (_PACKAGE, *_SPLITTERS)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"texts of OneFormer need CLIP's vocabulary, and {', '.join(missing)} is missing: {_ADVICE}")
    if file:
        return Path(file)
    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name(_VOCABULARY)


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as CLIP's vocabulary: {error}") from error
    pairs = [tuple(line.split()) for line in lines[1 : _NUM_MERGES + 1]]
    if len(pairs) < _NUM_MERGES or any(len(pair) != 2 for pair in pairs):
        raise ConfigError(f"{path}: expected CLIP's vocabulary of {_NUM_MERGES} pairs, found something else")
    return pairs  # type: ignore[return-value]
