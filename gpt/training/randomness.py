"""Randomness: a seed for each purpose, and the states of the global generators."""

import hashlib
import json
import random
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from gpt.errors import ConfigError


def derived_seed(seed: int, purpose: str, number: int = 0) -> int:
    """Return a seed for one purpose, for instance the dropout of one rank, from the seed of the run.

    Two purposes have unrelated streams: with the same seed, dropout would repeat the random numbers of the weights.
    """
    digest = hashlib.sha256(f"{seed} {purpose} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits: torch.manual_seed takes an int64


@dataclass(frozen=True, eq=False)
class RandomState:
    """The states of the global generators of torch, of a CUDA device, of Python and of numpy."""

    cpu: Tensor
    cuda: Tensor | None
    python: Any
    numpy: Any

    @classmethod
    def now(cls, device: torch.device) -> Self:
        """Return the states as they are, with that of `device` if it is a CUDA device."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, random.getstate(), np.random.get_state(legacy=True))

    def restore(self, device: torch.device) -> None:
        """Put the global generators into these states."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and device.type == "cuda":
            torch.cuda.set_rng_state(self.cuda, device)
        random.setstate(self.python)
        np.random.set_state(self.numpy)

    def to_json(self) -> str:
        """Return the states as one line of JSON."""
        name, key, *rest = self.numpy
        return json.dumps(
            {
                "cpu": self.cpu.numpy().tobytes().hex(),
                "cuda": None if self.cuda is None else self.cuda.numpy().tobytes().hex(),
                "python": self.python,
                "numpy": [name, key.tolist(), *rest],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the states that `to_json` wrote. Raises `ConfigError` if the text is not such a line."""
        try:
            found = json.loads(text)
            version, internal, gauss = found["python"]
            name, key, *rest = found["numpy"]
            return cls(
                _bytes(found["cpu"]),
                None if found["cuda"] is None else _bytes(found["cuda"]),
                (version, tuple(internal), gauss),
                (name, np.array(key, np.uint32), *rest),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{text[:60]!r} is no random state ({error!r}); expected what to_json wrote") from error


def _bytes(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
