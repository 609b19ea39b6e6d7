"""Files of calibration prompts: what is read, and what is refused with a hint."""

import pytest

from rtgen.config.locate import calibration_files
from rtgen.errors import PromptError
from rtgen.quantize.prompts import MAXIMUM_BYTES, read_prompts


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "prompts.txt"
        path.write_bytes(content)
        return path

    return write


def test_comments_blank_lines_and_repetitions_are_left_out(written):
    content = "\ufeff# mine\r\n\r\n  a red  kite \r\na blue bird\na red kite\n".encode()
    assert read_prompts(written(content)) == ("a red kite", "a blue bird")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no prompt"),
        (b"# only\n\n  \n", "holds no prompt"),
        (b"a kite \xff\n", "is not UTF-8 text"),
        (b"PK\x03\x04\x00\x00", "is not a text file"),
        (b"x" * (MAXIMUM_BYTES + 1), "larger than 1 MiB"),
        (b"x" * 100_001, "a prompt of 100,001 characters"),
        (b"\n".join(b"prompt %d" % number for number in range(129)), "129 prompts, more than 128"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused(written, content, reason):
    with pytest.raises(PromptError, match=reason) as caught:
        read_prompts(written(content))
    assert caught.value.hint


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_what_cannot_be_read_is_refused(tmp_path, name):
    with pytest.raises(PromptError, match="calibration prompts cannot be read"):
        read_prompts(tmp_path / name)


def test_the_shipped_lists_are_sound():
    found = {name: read_prompts(path) for name, path in calibration_files().items()}
    assert set(found) >= {"postcard", "general"}
    assert all(len(prompts) >= 12 for prompts in found.values())


def test_postcards_list_shows_every_attribute_and_nothing_that_was_held_out():
    from scripts.postcard.grammar import ATTRIBUTES, vocabulary, words

    prompts = read_prompts(calibration_files()["postcard"])
    seen = {word for prompt in prompts for word in words(prompt)}
    assert seen <= set(vocabulary())
    assert len(prompts) >= 2 * len(ATTRIBUTES["place"])
