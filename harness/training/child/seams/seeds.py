"""The seams of seeds: the calls that seed a global generator, and the seed that each pass over a `DataLoader` draws."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import dataloader

from harness.training.child.recorder import Recorder
from harness.training.child.seams.patches import Patches


class Seeds:
    """Records each call that seeds torch's, Python's or NumPy's global generator, with its line."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def install(self, patches: Patches) -> None:
        """Install the seam."""
        patches.replace(torch, "manual_seed", self._recorded)
        patches.replace(random, "seed", self._recorded)
        patches.when_imported("numpy.random", lambda module: patches.replace(module, "seed", self._recorded))

    def _recorded(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def seed(*args: Any, **keywords: Any) -> Any:
            if self.recorder.active and (line := self.recorder.line()):
                self.recorder.event("Seeded", step=self.recorder.step, line=line)
            return original(*args, **keywords)

        return seed


class LoaderSeeds:
    """Restores the generator after the draw of a loader, so that a pass over a set does not advance it by that alone.

    PyTorch makes this draw in every pass, also without workers and without shuffling, unless the loader has a
    generator of its own. No program that validates through a DataLoader could leave training's random numbers as they
    are. What else a validation draws, the order of a shuffled set too, still counts.
    """

    def install(self, patches: Patches) -> None:
        """Install the seam."""
        patches.replace(dataloader._BaseDataLoaderIter, "__init__", _without_advancing)


def _without_advancing(original: Callable[..., None]) -> Callable[..., None]:
    def init(*args: Any, **keywords: Any) -> None:
        state = torch.get_rng_state()
        original(*args, **keywords)
        torch.set_rng_state(state)

    return init
