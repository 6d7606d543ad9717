"""Published files: where they are searched for, how they are downloaded once, and their checksums."""

import hashlib
import os
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from gpt.data.whole_file import whole_file
from gpt.errors import DataCorrupt, DataError, DataUnavailable

TIMEOUT_SECONDS = 5.0
"""The longest time that a download may take to connect, and then between two reads."""

BPE = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"


@dataclass(frozen=True)
class Source:
    """A published file: its name in a data folder, its address and its checksum."""

    file: str
    url: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        """The publisher's name of the file."""
        return self.url.rsplit("/", 1)[-1]


TEXTS: dict[str, Source] = {
    "tinyshakespeare": Source(
        "tinyshakespeare.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        1_115_394,
    ),
}


def _bpe(name: str, sha256: str, size: int) -> Source:
    # tiktoken names a file in its cache by the sha1 of its address.
    return Source(hashlib.sha1(f"{BPE}{name}".encode()).hexdigest(), f"{BPE}{name}", sha256, size)


# The checksums are those in tiktoken_ext/openai_public.py.
VOCABULARY = (
    _bpe("vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5", 456_318),
    _bpe("encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783", 1_042_301),
)


# ---------------------------------------------------------------------------- finding files


def locate(sources: tuple[Source, ...]) -> Path:
    """Return the folder that contains all of `sources`, verified; download them into the user's cache if none does."""
    folders = places(sources)
    for folder in folders:
        if all((folder / source.file).is_file() for source in sources):
            for source in sources:
                verify(folder / source.file, source)
            return folder
    for source in sources:
        fetch(source, folders[-1], searched=folders)
    return folders[-1]


def places(sources: tuple[Source, ...]) -> list[Path]:
    """Return the folders to search for `sources`, in order; downloads go into the last."""
    data, cache = os.environ.get("GPT_HARNESS_DATA"), cache_folder()
    own = [Path(data).expanduser()] if data else []
    if sources != VOCABULARY:
        return [*own, cache]
    tiktoken_cache = os.environ.get("TIKTOKEN_CACHE_DIR")
    tiktoken_folders = [Path(tiktoken_cache).expanduser()] if tiktoken_cache else []
    return [*tiktoken_folders, *(folder / "tiktoken" for folder in own), cache / "tiktoken"]


def cache_folder() -> Path:
    """Return the user's cache folder for this project's downloads."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gpt-harness"


def verify(path: Path, source: Source) -> None:
    """Raise `DataCorrupt` unless the file matches its published checksum, `DataUnavailable` if it cannot be read."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataUnavailable(f"{path}: cannot be read ({error.strerror})") from error
    if found != source.sha256:
        raise DataCorrupt(
            f"{path}: has the sha256 {found}, expected {source.sha256}; it was changed or damaged: delete it "
            "and run `python -m gpt.data`"
        )


# ---------------------------------------------------------------------------- downloading

_failed: dict[str, DataError] = {}  # each download is tried once a process, so that nothing waits twice


def fetch(source: Source, folder: Path, *, searched: list[Path]) -> None:
    """Download one file into `folder`, whole and verified, or not at all.

    Raises `DataUnavailable` or `DataCorrupt`.
    """
    target = folder / source.file
    if target.is_file():
        return verify(target, source)
    if source.url not in _failed:
        try:
            return _download(source, target)
        except DataCorrupt as error:
            _failed[source.url] = error
        except (OSError, ValueError, HTTPException) as error:  # no network, a timeout, an invalid response
            _failed[source.url] = DataUnavailable(
                f"{source.name} ({source.file}) is not in {', '.join(map(str, searched))}, and {source.url} "
                f"cannot be downloaded ({error}); with a network, `python -m gpt.data` fetches it"
            )
    raise _failed[source.url]


def _download(source: Source, target: Path) -> None:
    with whole_file(target) as file:
        found = hashlib.sha256()
        for piece in _pieces(source):
            found.update(piece)
            file.write(piece)
        if found.hexdigest() != source.sha256:
            raise DataCorrupt(
                f"{source.url}: the download has the sha256 {found.hexdigest()}, expected "
                f"{source.sha256}; nothing was saved"
            )


def _pieces(source: Source) -> Iterator[bytes]:
    """Yield the file as it arrives, with progress on stderr."""
    print(f"fetching {source.url} ({source.size:,} bytes)", file=sys.stderr, flush=True)
    request = urllib.request.Request(source.url, headers={"User-Agent": "gpt-harness"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        done = 0
        while piece := response.read(1 << 16):
            done += len(piece)
            if done > source.size:
                raise ValueError(f"more than the {source.size:,} bytes that were published")
            _progress(source, done)
            yield piece
    if done < source.size:
        raise ValueError(f"the connection ended after {done:,} of {source.size:,} bytes")


def _progress(source: Source, done: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == source.size else ""
        print(f"\r{source.name}: {done:,} of {source.size:,} bytes", end=end, file=sys.stderr, flush=True)
