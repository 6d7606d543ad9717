"""The text as the checkpoint's token ids, and what tables of frequencies of that text score on its last part."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import HarnessError, MissingResource
from harness.core.shipped_packages import shipped_package
from harness.diagnosis.triage.evidence import Evidence, undecided
from harness.diagnosis.triage.stored_checkpoint import StoredCheckpoint

CAUSE = "ids of the text"
DATA = "gpt.data"  # a name, not an import: texts and vocabularies are those of the trainer
DEFAULT_TEXT = "tinyshakespeare"
GPT2_ROWS = (50257, 50304)  # the second is nanoGPT's, padded to a multiple of 64
BYTES = 256
ORDERS = (1, 2, 3, 4)  # tokens of a row of a table, the predicted one included; 50,304^4 is below 2^63


@dataclass(frozen=True)
class Text:
    """A text as token ids, 1-D int64: a first part for the tables, and a last one on which all is scored."""

    name: str
    vocabulary: str
    first: Tensor
    last: Tensor


def tokens_of(
    stored: StoredCheckpoint, rows: int, *, text: str | None = None, vocabulary: str | None = None
) -> tuple[Text | None, Evidence]:
    """Return the text in the checkpoint's vocabulary, and the evidence on whether its ids can be the checkpoint's.

    `rows` is the number of rows of the token embedding. `text` is a file or a published text by its name, and
    TinyShakespeare if it is None; `vocabulary` is "gpt2", "bytes" or "characters", and read off if it is None. Without
    a text, or without a vocabulary, the evidence says what is missing. Raises HarnessError for a text that was named
    and cannot be read.
    """
    name = text or DEFAULT_TEXT
    with shipped_package("gpt"):
        data: Any = importlib.import_module(DATA)
    try:
        contents = data.load_text(name)
    except Exception as error:
        if text is not None:
            raise HarnessError(f"--text {text}: {error}") from error
        return None, undecided(CAUSE, f"no text is at hand; name one with --text FILE ({error})")
    try:
        chosen = _vocabulary(data, stored, rows, contents, vocabulary)
        if isinstance(chosen, Evidence):
            return None, chosen
        ids: Tensor = chosen.encode(contents)
    except MissingResource as error:
        return None, undecided(CAUSE, str(error))
    except Exception as error:
        return None, undecided(CAUSE, f"the text cannot be encoded in the checkpoint's vocabulary: {error}")
    if vocabulary is None and stored.vocabulary_sha256 and chosen.digest != stored.vocabulary_sha256:
        says = "vocabulary.json of the run is not the vocabulary of the checkpoint: its sha256 differs"
        return None, Evidence(CAUSE, "wrong", says, source="the sha256 in the checkpoint's manifest")
    largest = int(ids.max())
    evidence = Evidence(
        CAUSE,
        "wrong" if largest >= rows else "right",
        f"the text has ids up to {largest} in the vocabulary '{chosen.name}' of {chosen.size}, and the token embedding "
        f"has {rows} rows",
        "largest id of the text",
        float(largest),
        None,
        "",
        f"at most {rows - 1}",
        "the rows of the token embedding",
    )
    if largest >= rows:
        return None, evidence
    end = len(ids) - len(ids) // 10  # gpt.train validates on the last tenth, too
    return Text(name, chosen.name, ids[:end], ids[end:]), evidence


def _vocabulary(data: Any, stored: StoredCheckpoint, rows: int, contents: str, named: str | None) -> Any:
    """Return the vocabulary that was named or stored, or that the rows of the embedding say; Evidence if none is."""
    if named is not None:
        return data.vocabulary(named, contents)
    if stored.vocabulary:
        return data.Vocabulary.from_json(stored.vocabulary)
    if rows in GPT2_ROWS:
        return data.vocabulary("gpt2", contents)
    if rows == BYTES:
        return data.vocabulary("bytes", contents)
    characters = len(set(contents))
    if rows == characters:
        return data.vocabulary("characters", contents)
    stated = json.dumps(stored.settings.get("vocabulary", "")).strip('"')
    return undecided(
        CAUSE,
        f"the token embedding has {rows} rows: neither GPT-2's {GPT2_ROWS[0]}, nor {BYTES} bytes, nor the {characters} "
        f"characters of the text{f'; the checkpoint says {stated}' if stated else ''}; give --vocabulary, or --text "
        "with the text of the training",
    )


def table_losses(text: Text, rows: int, windows: Tensor, start: int, length: int) -> dict[int, Tensor]:
    """Return, for each of ORDERS, the loss of the next token by a table of so many tokens, float64 (N, T).

    The tables are counted in the first part of the text. `windows` (N, W) are scored at T = `length` positions from
    `start` on. Each order is smoothed with the one below it by Witten and Bell (1991): what was never seen gets a
    share that grows with the number of different tokens that were. `rows` is the vocabulary's size.
    """
    targets = windows[:, start + 1 : start + 1 + length]
    probability = torch.full(targets.shape, 1 / rows, dtype=torch.float64)
    found = {}
    context = torch.zeros_like(targets)
    keys = torch.zeros_like(text.first)  # of the tokens before each place of the text
    for order in ORDERS:
        before = order - 1
        if before:  # one more token, further back, in front of the context
            factor = rows ** (before - 1)
            context = context + windows[:, start + 1 - before : start + 1 - before + length] * factor
            keys = keys[1:] + text.first[: len(text.first) - before] * factor
        after = text.first[before:]
        pairs, pair_counts = torch.unique(keys * rows + after, return_counts=True)  # sorted
        contexts, place = torch.unique(torch.div(pairs, rows, rounding_mode="floor"), return_inverse=True)
        kinds = torch.bincount(place, minlength=len(contexts)).double()
        totals = torch.zeros_like(kinds).index_add_(0, place, pair_counts.double())
        seen = _looked_up(pairs, pair_counts.double(), context * rows + targets)
        kind, total = (_looked_up(contexts, values, context) for values in (kinds, totals))
        mixed = (seen + kind * probability) / (total + kind).clamp(min=1)
        probability = torch.where(total > 0, mixed, probability)
        found[order] = -probability.log()
    return found


def _looked_up(keys: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """Return the values of the wanted keys, 0 for those that are not among the sorted `keys`."""
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return torch.where(keys[place] == wanted, values[place], 0.0)
