"""From a prompt to token ids, with a warning for everything that is lost on the way."""

import string
import unicodedata
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from rtgen.errors import PackageInvalidError, PromptError

if TYPE_CHECKING:
    import tokenizers

MAXIMUM_CHARACTERS: Final = 100_000
"""Far more than any model reads; refused before the tokenizer sees it."""

_SMALL_VOCABULARY: Final = 20_000
"""Up to this size the nearest known words are worth suggesting."""

_MAXIMUM_NAMED: Final = 5
"""Unknown words named in one warning."""

_UNKNOWN_NAMES: Final = ("<unk>", "[UNK]", "<UNK>")
_PADDING_NAMES: Final = ("<pad>", "[PAD]", "<PAD>")
_INVISIBLE: Final = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs", "Mn", "Me")
"""Unicode categories that leave nothing on the page: controls, format characters, spaces and bare accents."""

_WORD_MARKS: Final = "▁Ġ#"
"""What tokenizers put before a word or a word's continuation."""


@dataclass(frozen=True)
class Encoded:
    """A prompt as the text encoder takes it: ``ids`` and ``mask`` (1 for real tokens) are int64 [1, max_tokens]."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    warnings: tuple[str, ...]


class Tokenizer:
    """The tokenizer of a package."""

    def __init__(self, tokenizer: "tokenizers.Tokenizer", example: str) -> None:
        self._tokenizer = tokenizer
        self._example = example
        self._padding = _first_id(tokenizer, _PADDING_NAMES) or 0
        self._unknown = _first_id(tokenizer, _UNKNOWN_NAMES)
        self._words = _vocabulary_words(tokenizer)
        tokenizer.no_padding()

    @classmethod
    def from_file(cls, path: Path, *, example: str = "a lighthouse at night") -> Self:
        """Read ``tokenizer.json``. ``example`` is shown when a prompt is refused.

        Raises PackageInvalidError when the file is missing or not a tokenizer.
        """
        import tokenizers

        try:
            return cls(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")), example)
        except Exception as error:  # the library raises a bare Exception for a malformed file
            raise PackageInvalidError(
                f"{path.name} is not a tokenizer: {error}", hint="rtgen engine verify, then rtgen build"
            ) from error

    def encode(self, prompt: str, max_tokens: int) -> Encoded:
        """Tokens of a prompt, cut and padded to ``max_tokens``.

        Raises PromptError for a prompt with nothing to see in it, or one of more than 100,000 characters.
        """
        text = self._clean(prompt)
        self._tokenizer.enable_truncation(max_tokens)
        encoding = self._tokenizer.encode(text)
        ids = np.full((1, max_tokens), self._padding, dtype=np.int64)
        mask = np.zeros((1, max_tokens), dtype=np.int64)
        ids[0, : len(encoding.ids)] = encoding.ids
        mask[0, : len(encoding.ids)] = 1
        warnings = (self._cut_warning(text, encoding, max_tokens), self._unknown_warning(text, encoding))
        return Encoded(ids, mask, tuple(warning for warning in warnings if warning))

    def _clean(self, prompt: str) -> str:
        if len(prompt) > MAXIMUM_CHARACTERS:
            raise PromptError(
                f"the prompt has {len(prompt):,} characters, more than {MAXIMUM_CHARACTERS:,}",
                hint="describe the scene in a few sentences",
            )
        # Control characters and lone surrogates (undecodable bytes of a command line) become spaces.
        spaced = "".join(" " if unicodedata.category(character) in ("Cc", "Cs") else character for character in prompt)
        text = " ".join(unicodedata.normalize("NFKC", spaced).split())
        if all(unicodedata.category(character) in _INVISIBLE for character in text):
            raise PromptError("the prompt is empty", hint=f'describe a scene, such as --prompt "{self._example}"')
        return text

    def _cut_warning(self, text: str, encoding: Any, max_tokens: int) -> str | None:
        if not encoding.overflowing:
            return None
        end = max((end for _, end in encoding.offsets), default=0)
        dropped = text[end:].split()
        words = "the last word was" if len(dropped) == 1 else f"the last {len(dropped)} words were"
        return f"the prompt is longer than {max_tokens} tokens: {words} dropped, from '{_shorten(dropped[0])}' on"

    def _unknown_warning(self, text: str, encoding: Any) -> str | None:
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        pieces = (text[start:end].strip() for token, (start, end) in spans if token == self._unknown)
        # A lone comma means nothing to such a model either way.
        unknown = list(dict.fromkeys(piece for piece in pieces if piece.strip(string.punctuation)))
        if not unknown:
            return None
        named = ", ".join(self._described(word) for word in unknown[:_MAXIMUM_NAMED])
        more = f" and {len(unknown) - _MAXIMUM_NAMED} more" if len(unknown) > _MAXIMUM_NAMED else ""
        return f"the model does not know {named}{more}"

    def _described(self, word: str) -> str:
        near = get_close_matches(word.lower(), self._words, n=2, cutoff=0.6)
        return f"'{_shorten(word)}'" + (f" (near: {', '.join(near)})" if near else "")


def _first_id(tokenizer: "tokenizers.Tokenizer", names: tuple[str, ...]) -> int | None:
    found = (tokenizer.token_to_id(name) for name in names)
    return next((token for token in found if token is not None), None)


def _vocabulary_words(tokenizer: "tokenizers.Tokenizer") -> tuple[str, ...]:
    if tokenizer.get_vocab_size() > _SMALL_VOCABULARY:
        return ()
    return tuple(sorted(word for token in tokenizer.get_vocab() if (word := token.lstrip(_WORD_MARKS)).isalpha()))


def _shorten(word: str) -> str:
    return word if len(word) <= 40 else f"{word[:39]}…"
