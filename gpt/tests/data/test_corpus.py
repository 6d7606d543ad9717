"""The corpus: a text encoded once, and divided by position."""

import os
import re

import pytest
import torch

from gpt import ConfigError, TextError
from gpt.data import corpus, vocabulary
from gpt.data.corpus import Corpus
from gpt.data.vocabulary import ByteVocabulary
from gpt.errors import TextTooShort, TokenFileError

TEXT = "".join(chr(97 + number % 26) for number in range(1000))


def test_the_parts_are_the_text_in_its_order(tmp_path):
    made = corpus(TEXT, "bytes", validation_fraction=0.1, folder=tmp_path)
    assert (len(made.train), len(made.validation)) == (900, 100)
    assert made.vocabulary.decode(made.train) == TEXT[:900]
    assert made.vocabulary.decode(made.validation) == TEXT[900:]


@pytest.mark.parametrize(("fraction", "first"), [(0, 1000), (0.5, 500), (0.0011, 998), (0.999, 1)])
def test_the_training_part_is_the_stated_share_rounded_down(tmp_path, fraction, first):
    made = corpus(TEXT, "bytes", validation_fraction=fraction, folder=tmp_path)
    assert (len(made.train), len(made.validation)) == (first, 1000 - first)


def test_characters_that_only_the_validation_part_has_are_in_the_vocabulary(tmp_path):
    made = corpus("a" * 90 + "z" * 10, "characters", validation_fraction=0.1, folder=tmp_path)
    assert made.vocabulary == vocabulary("characters", "az")
    assert set(made.validation.tolist()) == {1}


def test_the_ids_of_gpt2_are_those_of_the_whole_text(tmp_path, gpt2_at_hand):
    made = corpus("The cat sat on the mat", "gpt2", validation_fraction=0.5, folder=tmp_path)
    assert made.train.tolist() == [464, 3797, 3332]
    assert made.validation.tolist() == [319, 262, 2603]
    assert made.train.dtype == torch.uint16


# ---------------------------------------------------------------------------- token files


def test_a_text_is_encoded_once(tmp_path, monkeypatch):
    first = corpus(TEXT, "bytes", validation_fraction=0.1, folder=tmp_path)
    monkeypatch.setattr(ByteVocabulary, "encode", lambda *_: pytest.fail("the text was encoded again"))
    again = corpus(TEXT, "bytes", validation_fraction=0.2, folder=tmp_path)
    assert torch.equal(first.train[:800], again.train)


def test_each_text_and_each_vocabulary_has_its_own_file(tmp_path):
    for text, name in ((TEXT, "bytes"), (TEXT, "characters"), (TEXT + "z", "bytes"), (TEXT[::-1], "characters")):
        made = corpus(text, name, validation_fraction=0, folder=tmp_path)
        assert made.vocabulary.decode(made.train) == text
    assert len(os.listdir(tmp_path)) == 4


def test_token_files_are_in_the_users_cache_folder_if_none_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GPT_HARNESS_TOKENS", raising=False)
    corpus(TEXT, "bytes", validation_fraction=0)
    assert [path.suffix for path in (tmp_path / "gpt-harness" / "tokens").iterdir()] == [".tokens"]


def test_an_environment_variable_moves_token_files_out_of_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GPT_HARNESS_TOKENS", str(tmp_path / "elsewhere"))
    corpus(TEXT, "bytes", validation_fraction=0)
    corpus(TEXT, "bytes", validation_fraction=0, folder=tmp_path / "given")
    assert [len(os.listdir(tmp_path / name)) for name in ("elsewhere", "given")] == [1, 1]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1] + b"?", lambda raw: raw[:-1]], ids=["changed", "cut off"])
def test_a_damaged_token_file_is_not_used_but_replaced_with_a_message(tmp_path, capsys, damage):
    """The text is at hand: to delete the file by hand would give the same one."""
    corpus(TEXT, "bytes", validation_fraction=0, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    intact = path.read_bytes()
    path.write_bytes(damage(intact))
    assert corpus(TEXT, "bytes", validation_fraction=0, folder=tmp_path).train.tolist() == list(TEXT.encode())
    assert re.search(r"bytes-\w+\.tokens: .*\nthe text is encoded again", capsys.readouterr().err)
    assert path.read_bytes() == intact
    corpus(TEXT, "bytes", validation_fraction=0, folder=tmp_path)
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_written_is_an_error_that_names_the_variables_that_move_it(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("GPT_HARNESS_TOKENS", raising=False)
    with pytest.raises(
        TokenFileError, match=r"file/.* give another folder with .* GPT_HARNESS_TOKENS, or XDG_CACHE_HOME"
    ):
        corpus(TEXT, "bytes", validation_fraction=0)
    with pytest.raises(TokenFileError, match=r"give another folder$"):
        corpus(TEXT, "bytes", validation_fraction=0, folder=tmp_path / "file")


def test_a_token_file_of_a_newer_program_is_an_error_and_stays(tmp_path):
    """It is not damaged: whoever wrote it would read it."""
    corpus(TEXT, "bytes", validation_fraction=0, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    newer = path.read_bytes().replace(b'"version": 1', b'"version": 2', 1)
    path.write_bytes(newer)
    with pytest.raises(TokenFileError, match="newer than this program's 1"):
        corpus(TEXT, "bytes", validation_fraction=0, folder=tmp_path)
    assert path.read_bytes() == newer


def test_two_processes_can_write_the_token_file_at_the_same_time(tmp_path, monkeypatch):
    """The second one writes its file from beginning to end while the first one has not put its own in place."""
    replace, found = os.replace, []

    def while_another_writes(source, target):
        monkeypatch.setattr(os, "replace", replace)
        found.append(corpus(TEXT, "bytes", validation_fraction=0, folder=tmp_path))
        replace(source, target)

    monkeypatch.setattr(os, "replace", while_another_writes)
    found.append(corpus(TEXT, "bytes", validation_fraction=0, folder=tmp_path))
    assert [made.vocabulary.decode(made.train) for made in found] == [TEXT, TEXT]
    assert len(os.listdir(tmp_path)) == 1


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_a_fraction_that_leaves_nothing_to_train_on_is_a_named_error(tmp_path, fraction):
    with pytest.raises(ConfigError, match="expected at least 0 and less than 1"):
        corpus(TEXT, "bytes", validation_fraction=fraction, folder=tmp_path)


def test_an_empty_text_is_a_named_error(tmp_path):
    with pytest.raises(TextError, match="is empty"):
        corpus("", "bytes", validation_fraction=0.1, folder=tmp_path)


@pytest.mark.parametrize(
    ("train", "validation", "named"), [(8, 9, "training"), (9, 8, "validation"), (0, 9, "training")]
)
def test_a_part_that_is_shorter_than_a_window_is_named(train, validation, named):
    made = Corpus(vocabulary("bytes", ""), torch.zeros(train), torch.zeros(validation))
    with pytest.raises(TextTooShort, match=rf"the {named} part has \d of the text's \d+ tokens, .* of 8 .* needs 9"):
        made.require_windows(8)


@pytest.mark.parametrize("validation", [0, 9])
def test_parts_with_a_window_each_are_enough(validation):
    Corpus(vocabulary("bytes", ""), torch.zeros(9), torch.zeros(validation)).require_windows(8)
