"""Changes of the text of a specimen, a right training program, which make other programs of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.faults.catalogue import is_counted_only

SPECIMENS = Path(__file__).with_name("specimens")
SCRIPT = SPECIMENS / "script.py"
TRAINER_CLASS = SPECIMENS / "trainer_class.py"
FUNCTIONS = SPECIMENS / "functions.py"
EPOCHS = SPECIMENS / "epochs.py"
Change = tuple[str, str]  # a text that a specimen has exactly once, and its replacement


@dataclass(frozen=True)
class Trainer:
    """One change of a specimen.

    Attributes:
        id: Its name; that of `FAULTS.md`'s catalogue where it is one of these.
        what: What is wrong, as a sentence.
        source: Who reported it.
        change: What is replaced.
        red: The checks that must turn red, by `suite::id`: all those that do on the rehearsals they need.
        hint: What the hint of one of them must say; empty if none of them gives a hint.
        rehearsals: Of a control: those whose checks must all pass.
        by_lot: It was added after the diagnosis was written, and half of such ones, by lot, are only counted.
        specimen: The file of the program that it changes.
    """

    id: str
    what: str
    source: str
    change: tuple[Change, ...]
    red: tuple[str, ...] = ()
    hint: str = ""
    rehearsals: tuple[str, ...] = ()
    by_lot: bool = False
    specimen: Path = SCRIPT

    @property
    def group(self) -> str:
        """ "training", or "training-counted": nobody is shown which of these were missed."""
        return "training-counted" if self.by_lot and is_counted_only(self.id) else "training"

    def source_text(self) -> str:
        """Return the specimen's text with the change. Raises AssertionError if a text to replace is not there once."""
        text = self.specimen.read_text(encoding="utf-8")
        for find, put in self.change:
            assert text.count(find) == 1, f"{self.id}: {find!r} is {text.count(find)} times in {self.specimen.name}"
            text = text.replace(find, put)
        return text


# Lines of `script.py` that several changes replace.
CHUNK = "chunk = torch.from_numpy(part[start : start + block_size + 1].astype(np.int64))"
SHORT_CHUNK = CHUNK.replace("block_size + 1]", "block_size - start % 5]")
LOSS = "loss = sum_of_losses(model(x), y) / count"
CLIP = "norm = nn.utils.clip_grad_norm_(model.parameters(), grad_clip)"
ZERO_GRAD = "    optimizer.zero_grad(set_to_none=True)\n"
ADAMW = "optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2))"
GROUPS = "matrices = [p for p in model.parameters() if p.dim() >= 2]"
SET_RATE = "    lr = get_lr(it)\n"
WARMUP = "return learning_rate * (it + 1) / (warmup_iters + 1)"
LAST_RATE = "    if it >= decay_iters:\n        return min_lr\n"
