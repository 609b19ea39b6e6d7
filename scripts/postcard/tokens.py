"""The postcard tokenizer: one token a word of the grammar, in the `tokenizers` library's own file format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from scripts.postcard.grammar import vocabulary

PADDING, UNKNOWN = "[PAD]", "[UNK]"


def build_tokenizer() -> Tokenizer:
    """Lower-cases, strips accents, splits at anything that is not a letter, and looks words up."""
    names = [PADDING, UNKNOWN, *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    return tokenizer


def save_tokenizer(path: Path) -> None:
    build_tokenizer().save(str(path))


def encode(tokenizer: Tokenizer, texts: Sequence[str], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, each [len(texts), length] int64; padding has id 0 and mask 0."""
    ids = torch.zeros(len(texts), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, encoding in enumerate(tokenizer.encode_batch(list(texts), add_special_tokens=False)):
        found = encoding.ids[:length]
        ids[row, : len(found)] = torch.tensor(found, dtype=torch.int64)
        mask[row, : len(found)] = 1
    return ids.to(device), mask.to(device)
