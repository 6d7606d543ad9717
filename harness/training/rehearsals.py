"""The rehearsals: short runs of a training program, each of which shows something else. A table of data."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from harness.training.child.request import Detail
from harness.training.markov import MarkovSource, random_source

NEVER = 10**9  # steps; 0 means never in some programs, and a division by zero in others
SEED = 1337

# What every rehearsal sets, if the program has settings for it: a model of some 30,000 parameters, and nothing at
# random but weights and batches.
SMALL: Mapping[str, Any] = {
    "vocabulary": "bytes",
    "order": "random",
    "workers": 0,
    "shuffle_buffer": 8,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "block_size": 16,
    "stride": 16,  # windows side by side: no target is left out
    "dropout": 0.0,
    "batch_size": 4,
    "accumulation": 1,
    "steps": 12,
    "lr": 1e-3,
    "min_lr": 1e-4,
    "warmup": 3,
    "warmup_share": 0.25,
    "cooldown": 4,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "clip": 0.5,  # below the norm of the first gradients, so that they are clipped
    "precision": "float32",
    "compile": False,
    "device": "cpu",
    "backend": "gloo",
    "eval_every": 4,
    "eval_batches": 4,
    "sample_every": NEVER,
    "sample_tokens": 4,  # a sample before the first step may not be avoidable
    "save_every": NEVER,
    "log_every": 1,
    "overfit_batches": 0,
    "seed": SEED,
}

# What two programs that are compared may differ in: a rehearsal that set it would hide the change.
LEFT_IF_CHANGED = frozenset(
    (
        *("lr", "min_lr", "warmup", "horizon", "schedule", "weight_decay", "beta1", "beta2", "eps", "clip"),
        *("cooldown", "stride", "dropout", "batch_size", "accumulation", "order", "precision"),
    )
)

# A text whose training part is 61 windows and its validation 6: the last batch of each is a short one.
SHORT_EPOCH = 1100
BLANK_LINE = "\n\n"  # between documents
COUNTED_IN_STEPS = frozenset(("steps", "horizon"))


@dataclass(frozen=True)
class Rehearsal:
    """One short run.

    Attributes:
        name: Its name, as measures ask for it.
        shows: What can be judged by it.
        settings: What is set beyond SMALL, by word.
        needs: The settings without which it shows nothing: the program must have them.
        text: "words" (each window of 16 occurs once) or "markov".
        length: The characters of the text.
        detail: What is recorded of each step.
        kill_after: Kill the process after this many optimizer steps.
        resumes: The rehearsal whose last checkpoint this one resumes from.
        ranks: The number of processes.
        leaves: What stays as the program has it, of what every rehearsal sets.
        epochs: So many short epochs are the run of a program that validates and saves at their ends; 0: no such run.
        loader_seeds_apart: The seed that a DataLoader draws in each pass does not advance torch's generator.
        other_hashes: It runs in a process in which hash() gives other numbers: the order of a set is another one.
    """

    name: str
    shows: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    text: Literal["words", "markov"] = "words"
    length: int = 4000
    detail: Detail = "tensors"
    kill_after: int | None = None
    resumes: str | None = None
    ranks: int = 1
    leaves: frozenset[str] = frozenset()
    epochs: int = 0
    loader_seeds_apart: bool = False
    other_hashes: bool = False

    @property
    def steps(self) -> int:
        """Return after how many steps the run ends, at most."""
        steps: int = {**SMALL, **self.settings}["steps"]
        return steps

    @property
    def values(self) -> dict[str, Any]:
        """Return all settings. The schedule ends with the run, unless the rehearsal says otherwise."""
        values = {**SMALL, **self.settings}
        tokens = values["batch_size"] * values["block_size"] * values["accumulation"] * self.ranks
        # Training may be the first so many characters or lines, and validation as many more; of documents, the others.
        text = words(self.length)
        lines, documents = text.count("\n") + 1, text.count(BLANK_LINE) + 1
        parts = {"text_length": self.length * 9 // 10, "validation_length": self.length // 10}
        parts |= {"lines": lines * 9 // 10, "validation_lines": lines // 10}
        parts |= {"documents": documents, "validation_documents": max(1, documents // 6)}
        values = {"horizon": values["steps"], "tokens_per_step": tokens, **parts, **values}
        values["stable"] = max(values["warmup"], values["horizon"] - values["cooldown"])
        return {word: value for word, value in values.items() if word not in self.leaves}

    def in_epochs(self, steps: int) -> Rehearsal:
        """Return this rehearsal for a program that validates and saves at the end of each epoch, of so many steps."""
        return replace(
            self,
            settings={**self.settings, "order": "epoch", "epochs": self.epochs, "steps": (self.epochs + 1) * steps},
            needs=tuple(word for word in self.needs if word != "eval_every"),
            length=SHORT_EPOCH,
            kill_after=None if self.kill_after is None else steps + max(1, steps // 2),
            leaves=COUNTED_IN_STEPS,
        )

    @property
    def source(self) -> MarkovSource | None:
        """Return the source of the text, if it is a Markov source."""
        return random_source() if self.text == "markov" else None

    def make_text(self) -> str:
        """Return the text."""
        source = self.source
        return words(self.length) if source is None else source.text(self.length, seed=SEED)


# Dropout draws random numbers in each pass, so that a state that is not restored, or is shared, shows in the weights.
_RESUME = {"accumulation": 2, "steps": 12, "save_every": 4, "dropout": 0.1, "eval_every": 5}
# The validation part is 25 windows, 7 batches of 4: the last one is short, so that a mean of their means shows.
_VALIDATION = {"steps": 8, "dropout": 0.1, "eval_batches": 7}

REHEARSALS: Mapping[str, Rehearsal] = {
    rehearsal.name: rehearsal
    for rehearsal in (
        Rehearsal("plain", "batches, gradients, steps, groups, the schedule and validation"),
        Rehearsal("again", "the same seed gives the same run", detail="hashes", other_hashes=True),
        Rehearsal("other-seed", "the seed matters", {"seed": SEED + 1}, ("seed",), detail="hashes"),
        Rehearsal("straight", "a run that is never stopped", _RESUME, detail="hashes", epochs=3),
        Rehearsal(
            "killed",
            "a run that is killed with SIGKILL after a checkpoint",
            _RESUME,
            ("resume",),
            detail="hashes",
            kill_after=10,
            epochs=3,
        ),
        Rehearsal(
            "resumed",
            "that run, resumed from its last checkpoint",
            _RESUME,
            ("resume",),
            detail="hashes",
            resumes="killed",
            epochs=3,
            other_hashes=True,
        ),
        Rehearsal(
            "validate-often",
            "validation",
            {**_VALIDATION, "eval_every": 2},
            ("eval_every",),
            detail="hashes",
            epochs=3,
            loader_seeds_apart=True,
        ),
        Rehearsal(
            "validate-never",
            "no validation",
            {**_VALIDATION, "eval_every": NEVER},
            ("eval_every",),
            detail="hashes",
            loader_seeds_apart=True,
        ),
        Rehearsal(
            "fluctuating",
            "a validation loss that falls, and rises as the learning rate does",
            {"steps": 20, "eval_every": 2, "lr": 0.3, "min_lr": 0.3, "warmup": 19, "warmup_share": 0.95, "clip": 1.0},
            ("eval_every",),
            detail="losses",
            epochs=8,
        ),
        # A program may share the micro-batches of a step among its ranks.
        Rehearsal("two-ranks", "two processes, as torchrun starts them", {"steps": 5, "accumulation": 2}, ranks=2),
        Rehearsal(
            "overfit",
            "one batch again and again: the loss falls to its floor",
            {"steps": 100, "lr": 1e-2, "min_lr": 1e-3, "warmup": 10, "weight_decay": 0.0, "clip": 1.0}
            | {"overfit_batches": 1, "eval_every": NEVER, "log_every": 50},
            ("overfit_batches",),
            detail="losses",
        ),
        Rehearsal(
            "markov",
            "a text of known entropy, in one pass: every batch is fresh",
            {"order": "epoch", "steps": 150, "lr": 5e-3, "min_lr": 5e-4, "warmup": 10, "batch_size": 16, "clip": 1.0}
            | {"eval_every": 50, "eval_batches": 16, "log_every": 50},
            ("text",),
            text="markov",
            length=45_000,
            detail="losses",
        ),
        Rehearsal(
            "starts",
            "where random windows start",
            {"steps": 80, "eval_every": 40, "log_every": 50},  # a validation says where the training part ends
            ("text",),
            detail="losses",
        ),
        Rehearsal(
            "epoch",
            "windows side by side over a short text, for more than one epoch",
            {"order": "epoch", "steps": 45, "eval_every": 20},  # not before step 0 only: some programs do not then
            ("text",),
            length=1500,
            detail="losses",
        ),
        Rehearsal(
            "own-precision",
            "the types in which the program computes",
            {"steps": 6},
            ("precision",),
            leaves=frozenset(("precision",)),
        ),
        Rehearsal(
            "workers",
            "as above, read by two processes",
            {"order": "epoch", "steps": 45, "eval_every": 20, "workers": 2},
            ("text", "workers"),
            length=1500,
            detail="losses",
        ),
        Rehearsal(
            "epochs",
            "the whole schedule of a program that counts epochs",
            {"order": "epoch", "epochs": 3, "steps": 100, "eval_batches": 1},
            ("epochs",),
            length=SHORT_EPOCH,
            detail="losses",
            leaves=COUNTED_IN_STEPS,
        ),
        Rehearsal(
            "accumulate",
            "three micro-batches a step, one of them with fewer targets",
            {"order": "epoch", "accumulation": 3, "steps": 5, "eval_every": NEVER},
            ("accumulation",),
            length=805,  # 45 windows: the last step of an epoch has 4, 4 and 1
        ),
        Rehearsal(
            "past-horizon",
            "the schedule after its end",
            {"steps": 16, "horizon": 8, "eval_every": NEVER},
            ("horizon",),
            detail="hashes",
        ),
    )
}


def words(length: int) -> str:
    """Return a text of random words of random letters: of its windows of 16 characters no two are equal.

    Blank lines part it: programs that train on documents split their text there. It begins with
    every letter and mark that English texts have: programs with a vocabulary of characters look up their own prompts
    in it.
    """
    draw = random.Random(SEED)
    gaps = (*(" " * 6), "\n", "\n", BLANK_LINE)
    text = string.ascii_letters + string.digits + string.punctuation + " \n"
    while len(text) < length:
        text += "".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 7))) + draw.choice(gaps)
    return text[:length]
