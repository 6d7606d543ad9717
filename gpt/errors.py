"""Every mistake that a user of `gpt` can make, by name."""


class GPTError(Exception):
    """Anything that `gpt` refuses, so that one `except` can catch it all."""


class ConfigError(GPTError, ValueError):
    """A configuration that describes no GPT, or none that this package can represent."""


class ContextError(GPTError, ValueError):
    """A sequence that is longer than the model's context."""


class TokenError(GPTError, ValueError):
    """Token ids of the wrong kind or shape, or outside the vocabulary."""


class CacheError(GPTError, ValueError):
    """A key-value cache that does not fit what is asked of it."""


class GenerationError(GPTError, ValueError):
    """A request for generation that has no meaning."""


class WeightsError(GPTError):
    """Weights that do not fit the model, or a checkpoint that cannot be trusted."""


class WeightsUnavailable(WeightsError, FileNotFoundError):  # noqa: N818 - the name says what is wrong
    """A checkpoint that is neither at hand nor to be had from the hub."""


class DataError(GPTError):
    """A file that is there and cannot be used."""


class DataCorrupt(DataError):  # noqa: N818 - the name says what is wrong
    """A file or a download whose checksum is not the published one."""


class DataUnavailable(DataError, FileNotFoundError):  # noqa: N818 - the name says what is wrong
    """A file that is neither at hand nor to be had by downloading it."""


class TextError(DataError, ValueError):
    """A text that cannot be used as a corpus."""
