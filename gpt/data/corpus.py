"""The corpus of a run: a text as token ids, divided into a training part and a validation part."""

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gpt.data.published import cache_folder
from gpt.data.token_file import VERSION, TokenFile
from gpt.data.vocabulary import Vocabulary
from gpt.data.vocabulary import vocabulary as vocabulary_of
from gpt.errors import ConfigError, TextError, TextTooShort, TokenFileCorrupt, TokenFileError


@dataclass(frozen=True, eq=False)
class Corpus:
    """The token ids of a text: `train` comes first, `validation` is the rest. No token is in both.

    Both are 1-D, of uint16 or uint32 and memory-mapped when they come from `corpus`.
    """

    vocabulary: Vocabulary
    train: Tensor
    validation: Tensor

    def require_windows(self, length: int) -> None:
        """Raise `TextTooShort` unless each part has a window of `length` with its targets.

        An empty validation part is allowed: a run without validation has one.
        """
        total = len(self.train) + len(self.validation)
        for name, part in (("training", self.train), ("validation", self.validation)):
            if len(part) <= length and not (name == "validation" and len(part) == 0):
                raise TextTooShort(
                    f"the {name} part has {len(part)} of the text's {total} tokens, and a window of {length} with its "
                    f"targets needs {length + 1}; give a longer text, a shorter window (block_size) or another "
                    "validation_fraction"
                )


def corpus(text: str, vocabulary: str, *, validation_fraction: float, folder: Path | None = None) -> Corpus:
    """Return the corpus of a text, split by position before any window is cut.

    The text is encoded once: its token file stays in `folder`; without one, in the folder that the environment variable
    GPT_HARNESS_TOKENS names, or else in `tokens` in the user's cache folder. A token file that was damaged there is
    replaced, with a message on stderr: the text is at hand, so that nothing is lost. The first
    int(N * (1 - validation_fraction)) tokens are trained on, as in nanoGPT's prepare.py; 0 leaves no validation part.

    Raises `ConfigError` for a fraction outside [0, 1) or an unknown vocabulary, `TextError` for an empty text, and the
    errors of `TokenFile`.
    """
    if not 0 <= validation_fraction < 1:
        raise ConfigError(f"validation_fraction is {validation_fraction}; expected at least 0 and less than 1")
    if not text:
        raise TextError("the text is empty; expected a text")
    made, tokens = _encoded(text, vocabulary, folder)
    first = int(len(tokens) * (1 - validation_fraction))
    return Corpus(made, tokens[:first], tokens[first:])


def token_file_path(text: str, made: Vocabulary, folder: Path) -> Path:
    """Return where the token file of a text is: its name has the text's and the vocabulary's checksums."""
    key = hashlib.sha256(f"{VERSION} {made.digest} ".encode() + text.encode("utf-8", "surrogatepass")).hexdigest()
    return folder / f"{made.name}-{key[:32]}.tokens"


def _encoded(text: str, name: str, folder: Path | None) -> tuple[Vocabulary, Tensor]:
    made = vocabulary_of(name, text)
    default = Path(os.environ.get("GPT_HARNESS_TOKENS") or cache_folder() / "tokens")
    path = token_file_path(text, made, folder or default)
    if path.exists():
        try:
            return made, TokenFile.open(path, made).tokens
        except TokenFileCorrupt as error:
            print(f"{error}\nthe text is encoded again", file=sys.stderr)
    # Ranks may come here at the same time: each writes its own file and the last one, with the same bytes, stays.
    try:
        TokenFile.write(path, made.encode(text), made)
    except TokenFileError as error:
        if folder:
            raise
        raise TokenFileError(
            f"{error} with the environment variable GPT_HARNESS_TOKENS, or XDG_CACHE_HOME for all that is cached"
        ) from error
    return made, TokenFile.open(path, made).tokens
