"""A trainer of a few thousand weights on random bytes, for tests that need milliseconds."""

import string
from typing import Any

import torch

from gpt.data import Batch, Corpus, vocabulary
from gpt.training.config import TrainConfig
from gpt.training.ranks import Ranks
from gpt.training.trainer import Trainer


def corpus(train: int = 1000, validation: int = 200, seed: int = 0) -> Corpus:
    """Return random letters as bytes."""
    letters = torch.tensor(list(string.ascii_lowercase.encode()))
    drawn = torch.randint(len(letters), (train + validation,), generator=torch.Generator().manual_seed(seed))
    return Corpus(vocabulary("bytes", ""), letters[drawn[:train]], letters[drawn[train:]])


def config(**changes: Any) -> TrainConfig:
    """Return the configuration of a small run of 20 steps."""
    small = {
        "vocabulary": "bytes",
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 16,
        "block_size": 8,
        "batch_size": 4,
        "steps": 20,
        "warmup": 2,
        "lr": 1e-2,
        "min_lr": 1e-3,
        "eval_batches": 2,
        "sample_tokens": 12,
    }
    return TrainConfig(**small | changes)


def trainer(ranks: Ranks | None = None, *, text: Corpus | None = None, **changes: Any) -> Trainer:
    """Return a trainer of a small run."""
    return Trainer(config(**changes), text or corpus(), ranks)


def in_float64(made: Trainer) -> Trainer:
    """Return the trainer with its weights in float64; the optimizer has the same parameters."""
    made.model.double()
    return made


def ragged(batch: Batch, kept: int) -> Batch:
    """Return the batch with only the first `kept` targets of its first row, -100 for the others."""
    targets = torch.full_like(batch.targets, -100)
    targets[0, :kept] = batch.targets[0, :kept]
    return Batch(batch.ids, targets, batch.starts, batch.epoch, batch.number)


def everything(made: Trainer) -> dict[str, Any]:
    """Return a copy of all that a step may change: weights, moments, positions and random states."""
    copied = {name: tensor.clone() for name, tensor in made.weights().items()}
    for index, state in made.optimizer.state_dict()["state"].items():
        copied |= {f"{index}.{key}": tensor.clone() for key, tensor in state.items()}
    rest = {key: value for key, value in made.state_dict().items() if key != "optimizer"}
    return copied | rest


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Return True if two copies of `everything` are bitwise equal."""
    assert first.keys() == second.keys()
    return all(
        torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        for key, value in first.items()
    )
