"""The losses of a GPT on a text: by how far ahead the target is, by position, and against tables of the text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.core.errors import HarnessError
from harness.diagnosis.triage.evidence import MATTERS, STANDARD_ERRORS, Evidence, Mean, mean_over_windows, undecided
from harness.diagnosis.triage.text_tokens import Text, table_losses
from harness.subjects.model import Model

SHIFTED, POSITIONS, UNDERTRAINED = "shifted targets", "positions beyond the training", "undertrained"
OFFSETS = (-1, 0, 1, 2, 3)  # the target of position t is token t + offset; 1 is the next token
BEFORE, AFTER = 3, 3  # tokens that a window needs beyond its own, on both sides
# Fewer windows give no standard error worth the name; more than TOKENS in all would take minutes at 124M.
FEWEST, MOST, TOKENS = 8, 64, 16_384
AT_MOST = f"at most {MATTERS:g}"
TABLES = {1: "single tokens", 2: "pairs", 3: "triples", 4: "four tokens"}
BY_CHANCE = f"a tenth of perplexity, and {STANDARD_ERRORS:g} standard errors over windows of the text"


@dataclass(frozen=True)
class TextLosses:
    """Losses in nats of N windows of T positions, float64 (N, T); `by_offset` has one for each of OFFSETS.

    `tables` are those of tables of one to four tokens, counted in another part of the text. `entropy` (N, T) is that of
    the model's own predictions. `windows` is (N, BEFORE + T + AFTER).
    """

    windows: Tensor
    by_offset: dict[int, Tensor]
    tables: dict[int, Tensor]
    entropy: Tensor
    rows: int

    @property
    def ids(self) -> Tensor:
        """The tokens that the model read, (N, T)."""
        return self.windows[:, BEFORE:-AFTER]

    @property
    def next_ids(self) -> Tensor:
        """The token after each that the model read, (N, T)."""
        return self.windows[:, BEFORE + 1 : BEFORE + 1 + self.ids.shape[1]]

    @property
    def single(self) -> Tensor:
        """The loss of the next token by the frequencies of single tokens, (N, T)."""
        return self.tables[1]

    @property
    def next_token(self) -> Tensor:
        """The loss of the next token, (N, T)."""
        return self.by_offset[1]

    def is_below_single(self, losses: Tensor) -> bool:
        """Return True if losses (N, t) are below those of the table of single tokens by more than chance."""
        return mean_over_windows(self.single[:, : losses.shape[1]] - losses).is_above

    def is_below_tables(self, losses: Tensor) -> bool:
        """Return True if losses (N, t) are below those of every table by more than chance."""
        return all(mean_over_windows(table[:, : losses.shape[1]] - losses).is_above for table in self.tables.values())


def windows_of(text: Text, context: int) -> Tensor:
    """Return windows of the last part of the text, evenly spread, (N, BEFORE + T + AFTER), T the context if it can be.

    Raises HarnessError if the text is too short for FEWEST windows of 8 tokens.
    """
    stream = text.last if len(text.last) >= FEWEST * (context + BEFORE + AFTER) else torch.cat((text.first, text.last))
    length = min(context + BEFORE + AFTER, len(stream) // FEWEST)
    if length < 8 + BEFORE + AFTER:
        needed = FEWEST * (8 + BEFORE + AFTER)
        raise HarnessError(f"the text has {len(stream)} tokens, too few for a standard error: give at least {needed}")
    number = max(FEWEST, min(MOST, TOKENS // length, len(stream) // length))
    starts = torch.linspace(0, len(stream) - length, number).long()
    return torch.stack([stream[start : start + length] for start in starts.tolist()])


@torch.no_grad()
def text_losses(model: Model, text: Text) -> TextLosses:
    """Return the losses of the model on windows of the text, one window at a time."""
    windows = windows_of(text, model.size.context)
    T, rows = windows.shape[1] - BEFORE - AFTER, model.size.vocab_size
    found: dict[int, list[Tensor]] = {offset: [] for offset in OFFSETS}
    entropies = []
    for window in windows:
        log_probabilities = model.logits(window[None, BEFORE:-AFTER])[0].log_softmax(-1)  # (T, V)
        entropies.append(-(log_probabilities.exp() * log_probabilities.clamp(min=-1e4)).sum(-1).double())
        for offset in OFFSETS:
            targets = window[BEFORE + offset : BEFORE + offset + T]
            found[offset].append(-log_probabilities.gather(-1, targets[:, None])[:, 0].double())
    by_offset = {offset: torch.stack(losses) for offset, losses in found.items()}
    return TextLosses(windows, by_offset, table_losses(text, rows, windows, BEFORE, T), torch.stack(entropies), rows)


def shifted_targets(losses: TextLosses) -> Evidence:
    """Return the evidence on which token the model was trained to predict: the next one has to have the lowest loss.

    Another offset counts only if its loss is below that of the table of single tokens, so that something is known of
    that token: of losses that are all worse, the lowest means nothing.
    """
    means = {offset: float(values.mean()) for offset, values in losses.by_offset.items()}
    best = min(means, key=lambda offset: means[offset])
    other = best if best != 1 else min((o for o in means if o != 1), key=lambda o: means[o])
    gap = mean_over_windows(losses.next_token - losses.by_offset[other])
    listed = ", ".join(f"t{offset:+d}: {value:.3f}" for offset, value in means.items())
    wrong = gap.is_above and losses.is_below_single(losses.by_offset[best])
    if not wrong and not losses.is_below_single(losses.next_token):
        return undecided(SHIFTED, f"no token is predicted better than by its frequency (nats: {listed})")
    what = {
        -1: "the token before the one it reads: the targets were shifted the wrong way",
        0: "the token that it reads: the targets were not shifted",
        2: "the token after the next: the targets were shifted twice",
        3: "the third token ahead: the targets were shifted three times",
    }
    return Evidence(
        SHIFTED,
        "wrong" if wrong else "right",
        f"it predicts {what[best]} (nats: {listed})" if wrong else f"the next token has the lowest loss ({listed})",
        f"loss of t+1 less that of t{other:+d}",
        gap.value,
        gap.error,
        "nats",
        AT_MOST,
        BY_CHANCE,
    )


def late_positions(losses: TextLosses) -> tuple[Evidence, int]:
    """Return the evidence on positions past which the loss rises, and the number of positions before the rise.

    More context cannot make the next token harder to predict, so the expected loss of a right model falls with the
    position. The table of pairs is subtracted: it takes out what makes some positions of some windows harder.
    """
    N, T = losses.next_token.shape
    harder = losses.next_token - losses.tables[2]  # (N, T)
    fewest = max(1, T // 16)
    rises = {split: _rise(harder, split) for split in range(fewest, T - fewest + 1, fewest)}
    split, rise = max(rises.items(), key=lambda item: min(item[1].z, 100.0) * max(item[1].value, 0.0))
    wrong = rise.is_above
    before, after = float(losses.next_token[:, :split].mean()), float(losses.next_token[:, split:].mean())
    evidence = Evidence(
        POSITIONS,
        "wrong" if wrong else "right",
        f"from position {split} on the loss is {after:.3f} nats, and {before:.3f} before: it was not trained beyond "
        f"{split} tokens"
        if wrong
        else f"the loss does not rise along {T} positions ({N} windows)",
        f"loss from position {split} on less that before",
        rise.value,
        rise.error,
        "nats",
        AT_MOST,
        BY_CHANCE,
    )
    return evidence, split if wrong else T


def _rise(losses: Tensor, split: int) -> Mean:
    return mean_over_windows((losses[:, split:].mean(1) - losses[:, :split].mean(1))[:, None])


def undertrained(losses: TextLosses, trained: int, step: int | None) -> Evidence:
    """Return the evidence on how much was learned, on the first `trained` positions: against tables of the text.

    A GPT that knows less than a table of pairs, or no more than frequencies where a table knows more, is undertrained.
    One that knows more than that, and less than a table of three or four tokens, is only if this text is like that of
    its training.
    """
    # A table of four sees three tokens that are before the window: the model has none there to be compared with.
    first = BEFORE if trained > 2 * BEFORE else 0
    tables = {order: table[:, first:trained] for order, table in losses.tables.items()}
    own = losses.next_token[:, first:trained]
    best = min(tables, key=lambda order: float(tables[order].mean()))
    over_pairs, over_best = (mean_over_windows(own - tables[order]) for order in (2, best))
    knows_frequencies_alone = over_best.is_above and not mean_over_windows(tables[1] - own).is_above
    is_under = over_pairs.is_above or knows_frequencies_alone
    excess, table = (over_pairs, 2) if over_pairs.is_above else (over_best, best)
    known = (
        "no more than the frequencies of tokens" if knows_frequencies_alone else f"less than a table of {TABLES[table]}"
    )
    levels = ", ".join(f"{TABLES[order]} {float(table.mean()):.3f}" for order, table in tables.items())
    return Evidence(
        UNDERTRAINED,
        "wrong" if is_under else "possible" if excess.is_above else "right",
        f"the loss on the text is {float(own.mean()):.3f} nats{f' after {step} steps' if step is not None else ''}"
        + (f": it knows {known}{'' if is_under else ', if it was trained on text like this'}" * excess.is_above)
        + f" (nothing known {math.log(losses.rows):.3f}, tables of {levels})",
        f"loss less that of a table of {TABLES[table]}",
        excess.value,
        excess.error,
        "nats",
        AT_MOST,
        f"{BY_CHANCE}; tables are counted in the rest of it",
    )
