"""The errors that `gpt` raises for a user's mistakes."""


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


class GenerationError(GPTError, ValueError):
    """Arguments for generation that are out of range."""


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
