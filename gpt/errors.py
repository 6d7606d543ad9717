"""The errors that `gpt` raises for a user's mistakes."""

from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: the nearest known word, or else all known words."""
    import difflib  # here to save start-up time

    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


class GPTError(Exception):
    """The base of all errors of `gpt`, so that one `except` can catch them all."""


class ConfigError(GPTError, ValueError):
    """A configuration that describes no GPT, or one that this package cannot represent."""


class ContextError(GPTError, ValueError):
    """A sequence that is longer than the model's context, or than the room in a key-value cache."""


class TokenError(GPTError, ValueError):
    """Token ids of the wrong type or shape, or outside the vocabulary."""


class CacheError(GPTError, ValueError):
    """A key-value cache that does not fit the model or the batch."""


class SeedError(GPTError, ValueError):
    """A seed that is no whole number of 64 bits."""


class GenerationError(GPTError, ValueError):
    """Arguments for generation that are out of range."""


class ParallelError(GPTError, ValueError):
    """Ranks that cannot share a model or a batch, or a process that is no rank."""


class ServingError(GPTError, ValueError):
    """An engine that cannot be made, or a request that it cannot serve."""


class WeightsError(GPTError):
    """Weights that do not fit the model, or a damaged checkpoint."""


class WeightsUnavailable(WeightsError, FileNotFoundError):  # noqa: N818 - the name says what is wrong
    """A checkpoint that is not on this machine and cannot be fetched from the hub."""


class DataError(GPTError):
    """A file that cannot be used."""


class DataCorrupt(DataError):  # noqa: N818 - the name says what is wrong
    """A file or a download whose checksum is not the published one."""


class DataUnavailable(DataError, FileNotFoundError):  # noqa: N818 - the name says what is wrong
    """A file that is not on this machine and cannot be downloaded."""


class TextError(DataError, ValueError):
    """A text that cannot be used as a corpus."""


class TextTooShort(TextError):  # noqa: N818 - the name says what is wrong
    """A text, or a part of one, that has fewer tokens than a window with its targets."""


class UnknownCharacter(TokenError):  # noqa: N818 - the name says what is wrong
    """A character that the vocabulary of a run has no token for."""


class TokenFileError(DataError):
    """A token file that cannot be read or written, or that is of another vocabulary or version."""


class TokenFileCorrupt(TokenFileError, DataCorrupt):  # noqa: N818 - the name says what is wrong
    """A token file that was cut off or changed: its size or its checksum is not the one in its header."""


class LoaderError(GPTError, ValueError):
    """Arguments of a loader that describe no batches, or a saved position of another loader."""


class RunError(GPTError):
    """A run that cannot start, continue or write its files where the command says."""


class RunExists(RunError, ConfigError, FileExistsError):  # noqa: N818 - the name says what is wrong
    """A folder for a new run that has a run already."""


class OtherRankFailed(RunError):  # noqa: N818 - the name says what is wrong
    """Rank 0 could not go on, and says why: the other ranks stop with it."""


class DoesNotFit(RunError):  # noqa: N818 - the name says what is wrong
    """A run that needs more memory than the device has; the message says what would fit."""


class PackageMissing(RunError, ImportError):  # noqa: N818 - the name says what is wrong
    """A package that an option of a run needs and that is not installed."""


class CheckpointError(RunError):
    """A checkpoint of a run that cannot be read, used or written."""


class CheckpointMissing(CheckpointError, FileNotFoundError):  # noqa: N818 - the name says what is wrong
    """A run without a checkpoint, or a checkpoint without one of its files."""


class CheckpointCorrupt(CheckpointError):  # noqa: N818 - the name says what is wrong
    """A checkpoint that was cut off or changed after it was written."""


class CheckpointTooNew(CheckpointError):  # noqa: N818 - the name says what is wrong
    """A checkpoint in a format that a newer version of this program wrote."""


class CheckpointMismatch(CheckpointError, ConfigError):  # noqa: N818 - the name says what is wrong
    """A checkpoint of another configuration, another text or another number of ranks."""


class CheckpointNotSaved(CheckpointError, OSError):  # noqa: N818 - the name says what is wrong
    """A checkpoint that could not be written, for instance on a full disk; the ones before it are unchanged."""


class CheckpointNotRemoved(CheckpointError, OSError):  # noqa: N818 - the name says what is wrong
    """A checkpoint, or what an interrupted save has left of one, that the system does not let us remove or put back."""


class NonFinite(GPTError, ArithmeticError):  # noqa: N818 - the name says what is wrong
    """A loss or a gradient of a training step that is NaN or infinite."""


class ScalingError(GPTError, ValueError):
    """Training runs to which no scaling law can be fitted."""
