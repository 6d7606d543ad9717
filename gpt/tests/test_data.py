"""Texts and the tokenizer: found, downloaded once, verified, and read as they are."""

import hashlib
import os
import re
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from gpt import DataCorrupt, DataUnavailable, TextError, data
from gpt.data import __main__ as command
from gpt.data import published

TEXT = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 3000


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """Return an empty cache folder, with no folders of the user's and no earlier attempts."""
    for name in ("GPT_HARNESS_DATA", "TIKTOKEN_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(published, "_failed", {})
    return tmp_path / "cache" / "gpt-harness"


@pytest.fixture
def server(empty_cache, monkeypatch):
    """Serve the text on a loopback address; a test can change the handler's `body`, `length` and `delay`."""

    class Handler(BaseHTTPRequestHandler):
        body, requests, length, delay = TEXT, 0, len(TEXT), 0.0

        def do_GET(self):
            type(self).requests += 1
            time.sleep(self.delay)
            self.send_response(200)
            self.send_header("Content-Length", str(self.length))
            self.end_headers()
            self.wfile.write(self.body)

        def log_message(self, *_):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    source = published.Source(
        "text.txt", f"http://127.0.0.1:{web.server_port}/input.txt", hashlib.sha256(TEXT).hexdigest(), len(TEXT)
    )
    monkeypatch.setitem(published.TEXTS, "tinyshakespeare", source)
    yield Handler
    web.shutdown()
    web.server_close()


def left_behind(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------------------- downloading


def test_a_text_is_downloaded_once_and_then_found_in_the_cache(empty_cache, server):
    assert data.load_text() == TEXT.decode()
    assert data.load_text("tinyshakespeare") == TEXT.decode()
    assert server.requests == 1
    assert left_behind(empty_cache) == ["text.txt"]


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        ({"body": TEXT[:-1000]}, DataUnavailable, "ended after .* of 183,000 bytes"),
        ({"body": TEXT + b"x", "length": len(TEXT) + 1}, DataUnavailable, "more than the 183,000 bytes"),
        ({"body": b"Last" + TEXT[4:]}, DataCorrupt, "the download has the sha256 .*, expected .*; nothing was saved"),
        ({"delay": 1.0}, DataUnavailable, "timed out"),
    ],
    ids=["truncated", "too-long", "changed", "silent"],
)
def test_a_bad_download_is_rejected_leaves_nothing_and_is_not_tried_again(
    empty_cache, server, monkeypatch, damage, error, message
):
    monkeypatch.setattr(published, "TIMEOUT_SECONDS", 0.2)
    for name, value in damage.items():
        setattr(server, name, value)
    for _ in range(2):
        with pytest.raises(error, match=message):
            data.load_text()
    assert server.requests == 1
    assert left_behind(empty_cache) == []


def test_without_a_network_the_message_has_the_searched_folders_and_the_command(
    empty_cache, server, monkeypatch, tmp_path
):
    monkeypatch.setenv("GPT_HARNESS_DATA", str(tmp_path / "mine"))
    source = replace(published.TEXTS["tinyshakespeare"], url="http://127.0.0.1:9/input.txt")  # nothing listens there
    monkeypatch.setitem(published.TEXTS, "tinyshakespeare", source)
    with pytest.raises(DataUnavailable) as caught:
        data.load_text()
    message = str(caught.value)
    assert f"is not in {tmp_path / 'mine'}, {empty_cache}" in message
    assert "`python -m gpt.data` fetches it" in message
    assert isinstance(caught.value, FileNotFoundError)


def test_a_cache_folder_that_cannot_be_made_is_a_named_error(empty_cache, server, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataUnavailable, match="cannot be downloaded"):
        data.load_text()


# ---------------------------------------------------------------------------- finding


def test_the_users_own_folder_comes_first(empty_cache, server, monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text.txt").write_bytes(TEXT)
    monkeypatch.setenv("GPT_HARNESS_DATA", str(tmp_path / "mine"))
    assert data.load_text() == TEXT.decode()
    assert server.requests == 0


def test_a_changed_file_is_rejected_by_name_and_by_both_checksums(empty_cache, server, monkeypatch, tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT[:-1])
    monkeypatch.setenv("GPT_HARNESS_DATA", str(tmp_path))
    found, expected = hashlib.sha256(TEXT[:-1]).hexdigest(), hashlib.sha256(TEXT).hexdigest()
    with pytest.raises(DataCorrupt, match=rf"{re.escape(str(tmp_path))}.*{found}, expected {expected}.*gpt\.data"):
        data.load_text()


def test_the_vocabulary_is_searched_for_in_tiktokens_cache_first(empty_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("GPT_HARNESS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    found = published.places(published.VOCABULARY)
    assert found == [tmp_path / "tiktoken", tmp_path / "data" / "tiktoken", empty_cache / "tiktoken"]


def test_a_changed_vocabulary_is_rejected_and_not_deleted(empty_cache, monkeypatch, tmp_path):
    """tiktoken would remove it and download another, without a timeout."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for source in published.VOCABULARY:
        (tmp_path / source.file).write_text("{}")
    data.tokenizer.cache_clear()
    with pytest.raises(DataCorrupt, match=r"has the sha256"):
        data.tokenizer()
    assert all((tmp_path / source.file).exists() for source in published.VOCABULARY)


def test_the_vocabulary_is_the_one_in_tiktoken():
    """Its addresses, checksums and file names, repeated here because its own download has no timeout."""
    import inspect

    from tiktoken_ext import openai_public

    source = inspect.getsource(openai_public.gpt2)
    for file in published.VOCABULARY:
        assert f'"{file.url}"' in source
        assert f'"{file.sha256}"' in source
        assert file.file == hashlib.sha1(file.url.encode()).hexdigest()


def test_one_command_fetches_every_file_or_names_it(empty_cache, server, monkeypatch, capsys):
    monkeypatch.setattr(
        published, "VOCABULARY", (replace(published.VOCABULARY[0], url="http://127.0.0.1:9/vocab.bpe"),)
    )
    assert command.main() == 1
    output = capsys.readouterr()
    assert f"input.txt: {empty_cache / 'text.txt'}" in output.out
    assert "vocab.bpe" in output.err
    assert "cannot be downloaded" in output.err


# ---------------------------------------------------------------------------- texts


def test_a_users_own_text_is_read_unchanged(tmp_path):
    (tmp_path / "mine.txt").write_bytes("naïve\r\ntext\n".encode())
    assert data.load_text(tmp_path / "mine.txt") == "naïve\r\ntext\n"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("naïve".encode("latin1"), "the byte 0xef at offset 2 is not UTF-8.*iconv"),
        (b"", "is empty; expected a text"),
    ],
)
def test_a_file_that_is_not_text_is_a_named_error(tmp_path, raw, message):
    (tmp_path / "mine.txt").write_bytes(raw)
    with pytest.raises(TextError, match=message):
        data.load_text(tmp_path / "mine.txt")


def test_a_missing_text_is_a_named_error(tmp_path):
    with pytest.raises(
        DataUnavailable, match=r"shakespear: cannot be read .*expected a file, or one of tinyshakespeare"
    ):
        data.load_text("shakespear")
    with pytest.raises(DataUnavailable, match="cannot be read"):
        data.load_text(tmp_path)


@pytest.fixture
def vocabulary():
    data.tokenizer.cache_clear()
    folders = published.places(published.VOCABULARY)
    if not any((folder / source.file).is_file() for folder in folders for source in published.VOCABULARY):
        pytest.skip("GPT-2's vocabulary is not on this machine; `python -m gpt.data` fetches it")


def test_the_tokens_are_gpt2s(vocabulary, tmp_path):
    (tmp_path / "mine.txt").write_text("The cat sat on the mat")
    found = data.tokens(tmp_path / "mine.txt")
    assert found.dtype == torch.int64
    assert found.tolist() == [464, 3797, 3332, 319, 262, 2603]


def test_a_special_token_in_a_text_is_text(vocabulary, tmp_path):
    (tmp_path / "mine.txt").write_text("<|endoftext|>")
    assert 50256 not in data.tokens(tmp_path / "mine.txt")


def test_the_tokenizer_leaves_the_environment_unchanged(vocabulary, monkeypatch):
    before = dict(os.environ)
    data.tokenizer()
    assert dict(os.environ) == before


def test_tinyshakespeare_has_338_025_tokens(vocabulary):
    if not any(
        (folder / "tinyshakespeare.txt").is_file() for folder in published.places((published.TEXTS["tinyshakespeare"],))
    ):
        pytest.skip("TinyShakespeare is not on this machine; `python -m gpt.data` fetches it")
    assert len(data.tokens()) == 338_025


# ---------------------------------------------------------------------------- windows


def test_the_targets_of_a_window_are_the_tokens_that_follow():
    text = torch.arange(100, 150)
    inputs, targets = data.windows(text, batch=200, length=7, seed=0)
    assert inputs.shape == targets.shape == (200, 7)
    assert torch.equal(targets, inputs + 1)
    assert (int(inputs.min()), int(targets.max())) == (100, 149)  # both ends are reached
    again, _ = data.windows(text, batch=200, length=7, seed=0)
    assert torch.equal(inputs, again)


def test_a_text_shorter_than_a_window_is_a_named_error():
    assert data.windows(torch.arange(8), batch=2, length=7, seed=0)[0].tolist() == [[0, 1, 2, 3, 4, 5, 6]] * 2
    with pytest.raises(TextError, match="has 7 tokens, and a window of 7 with its targets needs 8"):
        data.windows(torch.arange(7), batch=2, length=7, seed=0)
