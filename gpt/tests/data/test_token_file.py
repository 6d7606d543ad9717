"""Token files: ids stored once and read without loading them, and every way in which a file can be wrong."""

import errno
import json
import os

import pytest
import torch

from gpt import TokenError
from gpt.data import TokenFile, token_file, vocabulary
from gpt.errors import DataCorrupt, TokenFileCorrupt, TokenFileError

BYTES = vocabulary("bytes", "")
IDS = torch.arange(1000) % 256


@pytest.fixture
def path(tmp_path):
    """Return the path of a file with 1000 ids of bytes."""
    TokenFile.write(tmp_path / "tokens", IDS, BYTES)
    return tmp_path / "tokens"


def header_length(raw):
    return 16 + int.from_bytes(raw[8:16], "little")


def rewrite(path, **changes):
    """Change entries of the header of a file, and nothing else."""
    raw = path.read_bytes()
    text = json.dumps(json.loads(raw[16 : header_length(raw)]) | changes).encode()
    text += b" " * (-(16 + len(text)) % 64)
    path.write_bytes(raw[:8] + len(text).to_bytes(8, "little") + text + raw[header_length(raw) :])


class Sized(type(BYTES)):
    """Bytes that say they are more."""

    size = 0

    def __init__(self, size):
        object.__setattr__(self, "size", size)


# ---------------------------------------------------------------------------- what is written is read


def test_the_ids_that_were_written_are_read(path):
    found = TokenFile.open(path, BYTES)
    assert found.tokens.long().tolist() == IDS.tolist()
    assert found.header["count"] == 1000
    assert found.header["vocabulary"] == {"name": "bytes", "size": 256, "digest": BYTES.digest}


def test_the_layout_is_the_documented_one(path):
    raw = path.read_bytes()
    offset = header_length(raw)
    assert raw[:8] == b"GPTTOKEN"
    assert offset % 64 == 0
    assert raw[offset:] == b"".join(number.to_bytes(2, "little") for number in IDS.tolist())
    assert json.loads(raw[16:offset])["dtype"] == "uint16"


@pytest.mark.parametrize(("size", "dtype", "width"), [(65_536, torch.uint16, 2), (65_537, torch.uint32, 4)])
def test_ids_have_two_bytes_where_all_of_the_vocabulary_fits_into_them_and_else_four(tmp_path, size, dtype, width):
    vocabulary = Sized(size)
    TokenFile.write(tmp_path / "tokens", torch.tensor([0, size - 1]), vocabulary)
    found = TokenFile.open(tmp_path / "tokens", vocabulary).tokens
    assert found.dtype == dtype
    assert found.tolist() == [0, size - 1]
    assert (tmp_path / "tokens").stat().st_size % 64 == 2 * width


def test_more_ids_than_a_piece_are_all_written_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(token_file, "PIECE", 7)
    TokenFile.write(tmp_path / "tokens", IDS, BYTES)
    assert TokenFile.open(tmp_path / "tokens", BYTES).tokens.tolist() == IDS.tolist()
    with pytest.raises(TokenError, match="token id 256"):
        TokenFile.write(tmp_path / "tokens", torch.tensor([*[0] * 10, 256]), BYTES)


def test_no_ids_are_a_file_too(tmp_path):
    TokenFile.write(tmp_path / "tokens", torch.tensor([], dtype=torch.int64), BYTES)
    assert len(TokenFile.open(tmp_path / "tokens", BYTES).tokens) == 0


def test_a_change_of_the_ids_in_memory_does_not_change_the_file(path):
    before = path.read_bytes()
    TokenFile.open(path, BYTES).tokens[:] = 0
    assert path.read_bytes() == before
    assert TokenFile.open(path, BYTES).tokens[1] == 1


# ---------------------------------------------------------------------------- what is not written


@pytest.mark.parametrize("outside", [-1, 256, 65_536 + 5], ids=["negative", "beyond", "wraps"])
def test_an_id_that_is_not_in_the_vocabulary_is_not_written(path, outside):
    """65,541 would become 5 in two bytes, an ordinary token."""
    before = path.read_bytes()
    with pytest.raises(TokenError, match=rf"token id {outside} is outside the vocabulary 'bytes' of 256"):
        TokenFile.write(path, torch.tensor([1, outside, 2]), BYTES)
    assert path.read_bytes() == before


@pytest.mark.parametrize("ids", [torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3), torch.zeros(3) > 0])
def test_what_is_no_row_of_ids_is_not_written(tmp_path, ids):
    with pytest.raises(TokenError, match="expected 1-D integers"):
        TokenFile.write(tmp_path / "tokens", ids, BYTES)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TokenFileError, match=r"tokens: cannot be written \(No space left on device\)"):
        TokenFile.write(path, IDS + 0, BYTES)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["tokens"]


def test_a_folder_that_cannot_be_made_is_a_named_error(path):
    with pytest.raises(TokenFileError, match=r"cannot be written .*; give another folder"):
        TokenFile.write(path / "inside", IDS, BYTES)


# ---------------------------------------------------------------------------- what is not read


def test_every_cut_of_a_file_is_a_named_error(path):
    raw = path.read_bytes()
    for length in {*range(0, header_length(raw) + 4, 3), header_length(raw), len(raw) - 1, len(raw) - 2}:
        path.write_bytes(raw[:length])
        with pytest.raises(TokenFileError):
            TokenFile.open(path, BYTES)


def test_a_file_that_was_cut_off_says_how_many_bytes_are_missing(path):
    raw = path.read_bytes()
    path.write_bytes(raw[:-2])
    with pytest.raises(
        TokenFileCorrupt, match=rf"cut off: has {len(raw) - 2:,} bytes, expected {len(raw):,} for 1,000"
    ):
        TokenFile.open(path, BYTES)
    path.write_bytes(raw + b"12")
    with pytest.raises(TokenFileCorrupt, match="has something behind its ids"):
        TokenFile.open(path, BYTES)


@pytest.mark.parametrize("place", [0, 998, 1999], ids=["first", "middle", "last"])
def test_one_changed_bit_of_the_ids_is_found_by_their_checksum(path, place):
    raw = bytearray(path.read_bytes())
    raw[header_length(raw) + place] ^= 1
    path.write_bytes(raw)
    with pytest.raises(TokenFileCorrupt, match=r"its ids have the sha256 .*, expected .*delete it") as caught:
        TokenFile.open(path, BYTES)
    assert isinstance(caught.value, DataCorrupt)


def test_a_file_that_is_no_token_file_is_a_named_error(path):
    path.write_bytes(b"First Citizen: before we proceed any further, hear me speak.")
    with pytest.raises(TokenFileError, match="is no token file: begins with b'First Ci', expected b'GPTTOKEN'"):
        TokenFile.open(path, BYTES)


def test_a_file_of_a_newer_version_says_so_whatever_its_header_has(path):
    rewrite(path, version=2, count="many")
    with pytest.raises(TokenFileError, match="is of version 2, newer than this program's 1; update the program"):
        TokenFile.open(path, BYTES)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"version": "1"},
        {"count": -1},
        {"count": None},
        {"vocabulary": {}},
        {"vocabulary": "bytes"},
        {"sha256": None},
        {"dtype": "uint32"},
    ],
    ids=str,
)
def test_a_changed_header_is_a_named_error(path, changes):
    rewrite(path, **changes)
    with pytest.raises(TokenFileCorrupt, match=r"its header (was cut off or changed|says uint32, expected uint16)"):
        TokenFile.open(path, BYTES)


def test_a_header_that_ends_at_an_odd_place_is_a_named_error(path):
    raw = path.read_bytes()
    length = header_length(raw) - 16
    path.write_bytes(raw[:8] + (length - 1).to_bytes(8, "little") + raw[16 : 16 + length - 1] + raw[16 + length :])
    with pytest.raises(TokenFileCorrupt, match="its header was cut off or changed"):
        TokenFile.open(path, BYTES)


@pytest.mark.parametrize("other", ["gpt2", "characters"])
def test_a_file_of_another_vocabulary_is_a_named_error(path, other):
    expected = vocabulary(other, "ab")
    with pytest.raises(TokenFileError, match=rf"with the vocabulary 'bytes' of 256 \(.*\), expected '{other}' of"):
        TokenFile.open(path, expected)


def test_two_character_vocabularies_of_one_size_are_told_apart(tmp_path):
    written, other = vocabulary("characters", "ab"), vocabulary("characters", "ac")
    TokenFile.write(tmp_path / "tokens", written.encode("abba"), written)
    with pytest.raises(TokenFileError, match="expected 'characters' of 2"):
        TokenFile.open(tmp_path / "tokens", other)


def test_ids_beyond_the_vocabulary_are_found_in_a_file_with_the_right_checksum(path, monkeypatch):
    monkeypatch.setattr(token_file, "_checked_ids", lambda ids, _: ids.numpy())
    TokenFile.write(path, torch.tensor([1, 300]), BYTES)
    with pytest.raises(TokenError, match="token id 300 is outside the vocabulary 'bytes' of 256"):
        TokenFile.open(path, BYTES)


def test_a_missing_file_is_a_named_error(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(TokenFileError, match="cannot be read"):
            TokenFile.open(path, BYTES)
