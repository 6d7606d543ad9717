"""The windows of a step in words, so that a person can find them in the text."""

from collections.abc import Sequence

import torch

from gpt.data import Batch, Vocabulary

STARTS = 16
"""The windows whose start is shown."""
WINDOWS = 3
"""The windows whose text is shown."""
TOKENS = 64
CHARACTERS = 60
"""The part of a window's text that is shown."""


def describe_windows(batches: Sequence[Batch], vocabulary: Vocabulary) -> str:
    """Return where the windows of `batches` start in the training part, and the text that the first ones begin with."""
    ids = torch.cat([batch.ids for batch in batches])  # (windows, T)
    starts = torch.cat([batch.starts for batch in batches])
    found = [(int(start), row) for start, row in zip(starts, ids, strict=True) if start >= 0]  # -1 is no window
    if not found:
        return "no windows"
    listed = ", ".join(str(start) for start, _ in found[:STARTS]) + (", ..." if len(found) > STARTS else "")
    texts = [f"{start}: {_shortened(vocabulary.decode(row[:TOKENS]))!r}" for start, row in found[:WINDOWS]]
    return f"{len(found)} windows, from the tokens {listed} on; the first begin with {', '.join(texts)}"


def _shortened(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 3] + "..."
