"""The texts of a sweep: a published one, or one drawn from a Markov source whose entropy is known."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.core.errors import HarnessError
from harness.core.whole_file import write_whole
from harness.lessons.texts import load_text
from harness.sweeps.plan_file import Source
from harness.training.markov import MarkovSource

FIRST_SYMBOL = 0x100  # letters of Latin Extended from here on: each is one character, and none is a line break
ZIPF = 0.7  # the r-th symbol is about r^-0.7 as likely as the first one
UNIFORM = 0.01  # of each row, so that no transition is impossible
MATRIX_SEED, TEXT_SEED = 0, 1


@dataclass(frozen=True)
class SourceText:
    """The text of a source as a file, and what is known about it.

    `entropy` is that of the source, in nats; None for a text. `floor` is the mean negative log-likelihood of the
    validation part under the source itself: what a perfect model would score on that very part.
    """

    path: Path
    characters: int
    vocabulary_size: int
    digest: str
    entropy: float | None = None
    unigram_entropy: float | None = None
    floor: float | None = None


def graded_source(symbols: int, *, spectrum: float, spread: float) -> MarkovSource:
    """Return a Markov source whose matrix of log probabilities has singular values ~ k^-spectrum.

    A model of width C has logits of rank C, so each width can learn a share of it; and rare symbols, of a Zipf
    distribution, take more text to learn. `spread` is the standard deviation of the log probabilities.
    """
    generator = torch.Generator().manual_seed(MATRIX_SEED)
    left, right = (
        torch.linalg.qr(torch.randn(symbols, symbols, generator=generator, dtype=torch.float64))[0] for _ in range(2)
    )
    values = torch.arange(1, symbols + 1, dtype=torch.float64) ** -spectrum
    values *= spread * symbols / values.square().sum().sqrt()
    zipf = -ZIPF * torch.arange(1, symbols + 1, dtype=torch.float64).log()
    matrix = torch.softmax(zipf + (left * values) @ right.T, 1)
    matrix = (1 - UNIFORM) * matrix + UNIFORM / symbols
    return MarkovSource(tuple(chr(FIRST_SYMBOL + number) for number in range(symbols)), matrix)


def write_source(folder: Path, source: Source, *, validation_tokens: int) -> SourceText:
    """Write the text of a source into a folder, unless it is there, and return what is known about it.

    Raises HarnessError for a text that is not at hand or shorter than the validation part.
    """
    folder = folder.resolve()
    if source.text:
        text = load_text(source.text)
        digest = _digest(text)  # in the name: two texts may have one, and a file may change between two runs
        path = folder / f"{Path(source.text).stem}-{digest}.txt"
        _write(path, text)
        return _checked(SourceText(path, len(text), len(set(text)), digest), source, validation_tokens)
    made = graded_source(source.symbols, spectrum=source.spectrum, spread=source.spread)
    path = folder / f"markov-{source.symbols}-{source.spectrum:g}-{source.spread:g}-{source.characters}.txt"
    text = path.read_text(encoding="utf-8") if path.exists() else made.text(source.characters, seed=TEXT_SEED)
    _write(path, text)
    known = SourceText(
        path, len(text), len(set(text)), _digest(text), *(
            round(nats, 12)  # the last bits depend on where the tensors are in memory
            for nats in (made.entropy, made.unigram_entropy, validation_floor(made, text, validation_tokens))
        ),
    )  # fmt: skip
    return _checked(known, source, validation_tokens)


def validation_fraction(characters: int, validation_tokens: int) -> float:
    """Return the fraction that leaves `validation_tokens` characters at the end of a text for validation."""
    # The trainer takes int(N · (1 - f)); half a character keeps rounding on the right side.
    return (validation_tokens - 0.5) / characters


def validation_floor(source: MarkovSource, text: str, validation_tokens: int) -> float:
    """Return the mean negative log-likelihood of the validation part of a text under its source, in nats a symbol.

    The first symbol is input only, as in the trainer's windows.
    """
    part = text[-validation_tokens:]
    number = {symbol: index for index, symbol in enumerate(source.symbols)}
    drawn = torch.tensor([number[symbol] for symbol in part])
    return float(source.nll(drawn[:-1], drawn[1:]).mean())


def _checked(known: SourceText, source: Source, validation_tokens: int) -> SourceText:
    if known.characters < 2 * validation_tokens:
        raise HarnessError(
            f"the text of the source '{source.name}' has {known.characters:,} characters; expected at least "
            f"{2 * validation_tokens:,}, of which {validation_tokens:,} are for validation"
        )
    return known


def _write(path: Path, text: str) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
