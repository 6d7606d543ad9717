"""Vocabularies: what a text's ids are, and that they become the text again."""

import pytest
import torch

from gpt import ConfigError, TextError, TokenError
from gpt.data import Vocabulary, vocabulary
from gpt.data.published import VOCABULARY
from gpt.errors import UnknownCharacter

TEXT = "The naïve cat sat on the mat 🐈\r\n"


@pytest.mark.parametrize("name", ["gpt2", "bytes", "characters"])
def test_a_text_becomes_ids_and_the_same_text_again(gpt2_at_hand, name):
    made = vocabulary(name, TEXT)
    ids = made.encode(TEXT)
    assert (ids.dtype, ids.dim()) == (torch.int64, 1)
    assert 0 <= int(ids.min()) <= int(ids.max()) < made.size
    assert made.decode(ids) == made.decode(ids.tolist()) == made.decode(ids.to(torch.uint16)) == TEXT
    assert made.encode("").tolist() == []


def test_the_ids_of_gpt2_are_the_published_ones(gpt2_at_hand):
    gpt2 = vocabulary("gpt2", "")
    assert gpt2.encode("The cat sat on the mat").tolist() == [464, 3797, 3332, 319, 262, 2603]
    assert gpt2.size == 50257
    assert len(gpt2.encode("<|endoftext|>")) > 1  # inside a text it is text
    assert gpt2.decode([50256]) == "<|endoftext|>"


def test_the_ids_of_bytes_are_utf8():
    assert vocabulary("bytes", "").encode("naïve").tolist() == [110, 97, 195, 175, 118, 101]
    assert vocabulary("bytes", "").size == 256


def test_bytes_that_are_not_a_whole_character_become_a_replacement_character():
    assert vocabulary("bytes", "").decode([97, 195, 98]) == "a\ufffdb"


def test_the_characters_are_those_of_the_whole_text_sorted():
    made = vocabulary("characters", "hello world")
    assert made.size == 8
    assert [made.decode([number]) for number in range(8)] == [" ", "d", "e", "h", "l", "o", "r", "w"]
    assert made.encode("hello").tolist() == [3, 2, 4, 4, 5]  # as nanoGPT's stoi


@pytest.mark.parametrize("unknown", ["A", "z", "😀", "\x00"], ids=["between", "behind", "far", "before"])
def test_a_character_that_is_not_in_the_vocabulary_is_a_named_error(unknown):
    made = vocabulary("characters", "hello world")
    with pytest.raises(UnknownCharacter, match=r"at position 3 is not among the 8 of the vocabulary") as caught:
        made.encode(f"hel{unknown}o")
    assert repr(unknown) in str(caught.value)
    assert isinstance(caught.value, TokenError)


@pytest.mark.parametrize("name", ["gpt2", "bytes", "characters"])
@pytest.mark.parametrize("outside", [-1, 70_000], ids=["negative", "beyond"])
def test_an_id_that_is_not_in_the_vocabulary_is_a_named_error(name, outside):
    made = vocabulary(name, "hello world")
    with pytest.raises(TokenError, match=rf"id {outside} at position 1 is outside the vocabulary '{name}' of"):
        made.decode([1, outside])
    with pytest.raises(TokenError, match=rf"id {made.size} at position 0"):
        made.decode(torch.tensor([made.size]))


def test_a_batch_of_ids_is_not_decoded_as_one_text():
    with pytest.raises(TokenError, match="1-D; found list"):
        vocabulary("bytes", "").decode(torch.tensor([[97, 98], [99, 100]]))


@pytest.mark.parametrize("name", ["gpt2", "bytes", "characters"])
def test_a_vocabulary_is_read_from_what_it_wrote(name):
    made = vocabulary(name, TEXT)
    again = Vocabulary.from_json(made.to_json())
    assert again == made
    assert (again.name, again.size, again.digest) == (made.name, made.size, made.digest)


def test_vocabularies_that_differ_have_different_digests():
    texts = [vocabulary("characters", text) for text in ("ab", "abc", "abd")]
    made = [vocabulary("gpt2", ""), vocabulary("bytes", ""), *texts]
    assert len({found.digest for found in made}) == len(set(made)) == 5
    assert vocabulary("characters", "cba").digest == texts[1].digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"size": 256}',
        '{"name": "words", "size": 9}',
        '{"name": "bytes", "size": 300}',
        '{"name": "characters", "size": 2, "characters": "ba"}',
        '{"name": "characters", "size": 2, "characters": "aa"}',
        '{"name": "characters", "size": 0, "characters": ""}',
        '{"name": "characters", "size": 1, "characters": ["a"]}',
        f'{{"name": "gpt2", "size": 50257, "{VOCABULARY[0].name}": "another"}}',
    ],
)
def test_a_line_that_is_no_vocabulary_is_a_named_error(text):
    with pytest.raises(ConfigError, match="vocabulary"):
        Vocabulary.from_json(text)


def test_a_vocabulary_that_does_not_exist_is_a_named_error():
    with pytest.raises(ConfigError, match="no vocabulary 'words'; expected one of gpt2, bytes, characters"):
        vocabulary("words", TEXT)


def test_a_text_without_characters_is_a_named_error():
    with pytest.raises(TextError, match="is empty"):
        vocabulary("characters", "")


@pytest.mark.parametrize("name", ["bytes", "characters"])
def test_half_a_surrogate_pair_is_a_named_error(name):
    with pytest.raises(TextError, match=r"half a surrogate pair, '.ud800', at position 2"):
        vocabulary(name, "ab").encode("ab\ud800")
