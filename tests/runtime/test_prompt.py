import json

import numpy as np
import pytest

from rtgen.errors import PackageInvalidError, PromptError
from rtgen.runtime.prompt import MAXIMUM_CHARACTERS, Tokenizer

VOCABULARY = ("<pad>", "</s>", "<unk>", "a", "red", "boat", "at", "night", "rain", "lighthouse", ",")


@pytest.fixture
def tokenizer(tmp_path):
    from tokenizers import Tokenizer as Native
    from tokenizers import models, normalizers, pre_tokenizers, processors

    native = Native(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    native.normalizer = normalizers.Lowercase()
    native.pre_tokenizer = pre_tokenizers.Whitespace()
    native.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    path = tmp_path / "tokenizer.json"
    native.save(str(path))
    return Tokenizer.from_file(path, example="a red boat")


def test_a_prompt_is_padded_and_masked(tokenizer):
    encoded = tokenizer.encode("A red\tboat\n", 8)
    assert encoded.ids.tolist() == [[3, 4, 5, 1, 0, 0, 0, 0]]
    assert encoded.mask.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
    assert encoded.ids.dtype == encoded.mask.dtype == np.int64
    assert encoded.warnings == ()


def test_a_long_prompt_keeps_its_end_token_and_says_what_was_dropped(tokenizer):
    encoded = tokenizer.encode("a red boat at night rain", 4)
    assert encoded.ids.tolist() == [[3, 4, 5, 1]]
    assert encoded.warnings == ("the prompt is longer than 4 tokens: the last 3 words were dropped, from 'at' on",)


def test_unknown_words_are_named_with_near_ones_and_punctuation_is_not(tokenizer):
    encoded = tokenizer.encode("a red boot ! xylophone, lighthose 🐙", 12)
    assert encoded.warnings == (
        "the model does not know 'boot' (near: boat), 'xylophone', 'lighthose' (near: lighthouse), '🐙'",
    )


@pytest.mark.parametrize("prompt", ["", "  \t\n", "\x00\x1b\x7f", "\u200b\u00a0\u3000", "\udc80"])
def test_a_prompt_with_nothing_in_it_is_refused_with_an_example(tokenizer, prompt):
    with pytest.raises(PromptError, match="empty") as caught:
        tokenizer.encode(prompt, 8)
    assert "a red boat" in caught.value.hint


def test_an_enormous_prompt_is_refused_before_tokenizing(tokenizer):
    with pytest.raises(PromptError, match="100,001 characters"):
        tokenizer.encode("x" * (MAXIMUM_CHARACTERS + 1), 8)


def test_compatibility_forms_and_bytes_that_are_no_text_are_normalised(tokenizer):
    assert tokenizer.encode("a ｒｅｄ\udcffboat", 8).ids.tolist() == [[3, 4, 5, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("content", ["", "{}", json.dumps({"model": {"type": "Evil"}}), "\xff"])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(PackageInvalidError, match=r"tokenizer\.json"):
        Tokenizer.from_file(path)
