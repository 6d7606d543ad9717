"""Find a checkpoint's files: in a directory, in the hub's local cache, or on the hub."""

import os
import re
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from gpt.checkpoint import read_json
from gpt.errors import WeightsError, WeightsUnavailable

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"

# The published sizes' repositories. A local cache may still have them under their old names, without the owner.
PUBLISHED = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
}
CONNECT_SECONDS = 4.0

Find = Callable[[str], Path | None]
"""From a file's name to its path, or None when there is no such file."""


def locate(name: str | os.PathLike[str], *, download: bool = True) -> tuple[Path, list[Path]]:
    """Return the paths of config.json and of the safetensors of `name`.

    `name` is a directory or a repository, which is searched for in the hub's local cache and then on the hub.

    Raises `WeightsUnavailable`, whose message lists where it searched.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _files(lambda file: folder / file if (folder / file).is_file() else None, str(folder))
    name = os.fspath(name)
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise WeightsUnavailable(f"{name}: no such directory, and not a valid repository name on the hub")
    repository = PUBLISHED.get(name, name)
    for known in dict.fromkeys((repository, name)):
        if _cached(known, CONFIG) and (_cached(known, SINGLE) or _cached(known, INDEX)):
            try:
                return _files(partial(_cached, known), f"{known} in the local cache")
            except WeightsUnavailable:
                continue  # a shard is missing; the hub may have it
    if not download:
        raise WeightsUnavailable(f"{name}: no such directory, and not in the hub's local cache")
    _check_hub_answers(name)
    return _files(partial(_fetched, repository), f"{repository} on the hub")


def _files(find: Find, where: str) -> tuple[Path, list[Path]]:
    config = find(CONFIG)
    if config is None:
        raise WeightsUnavailable(f"{where}: contains no {CONFIG}; expected a Hugging Face GPT-2")
    single = find(SINGLE)
    if single is not None:
        return config, [single]
    index = find(INDEX)
    if index is not None:
        return config, [_shard(find, shard, where) for shard in _shards(index)]
    if find(PICKLED) is not None:
        raise WeightsUnavailable(
            f"{where}: contains {PICKLED} and no {SINGLE}; opening a pickle can run any code, so only "
            "safetensors are read: if you trust it, convert it with transformers' save_pretrained"
        )
    raise WeightsUnavailable(f"{where}: contains no {SINGLE}")


def _shards(index: Path) -> list[str]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise WeightsError(f"{index}: has no weight_map; expected the shard of each tensor")
    return sorted({str(shard) for shard in names.values()})


def _shard(find: Find, shard: str, where: str) -> Path:
    if Path(shard).name != shard:
        raise WeightsError(f"{where}: {INDEX} names the shard {shard!r}; expected a file beside it")
    path = find(shard)
    if path is None:
        raise WeightsUnavailable(f"{where}: {INDEX} names {shard}, which does not exist; fetch it again")
    return path


def _cached(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache  # here, as below, to save start-up time

    found = try_to_load_from_cache(repository, file)
    return Path(found) if isinstance(found, str) else None


def _fetched(repository: str, file: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if file == PICKLED:  # it would not be opened, so it is not fetched
        return None
    try:
        return Path(hf_hub_download(repository, file, etag_timeout=CONNECT_SECONDS))
    except LocalEntryNotFoundError as error:
        raise WeightsUnavailable(f"{repository}: the hub does not answer ({error})") from error
    except EntryNotFoundError:
        return None
    except Exception as error:  # the hub's errors, its HTTP library's, and OSError for a short download
        raise WeightsUnavailable(f"{repository}: {file} cannot be fetched from the hub ({error})") from error


def _check_hub_answers(name: str) -> None:
    from huggingface_hub import constants

    problem = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _no_answer(constants.ENDPOINT)
    if problem:
        raise WeightsUnavailable(
            f"{name}: no such directory, not in the hub's local cache, and {constants.ENDPOINT} cannot be "
            f"reached ({problem}); with a network, fetch it with: "
            f"hf download {PUBLISHED.get(name, name)} {CONFIG} {SINGLE}"
        )


@lru_cache(maxsize=8)
def _no_answer(endpoint: str) -> str | None:
    """Return why nothing answers at `endpoint`, or None when anything does, an error page included.

    It is tried once a process. Without a network, the hub's own client would retry for 23 s.
    """
    import urllib.error
    import urllib.request

    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        return str(error)
    return None
