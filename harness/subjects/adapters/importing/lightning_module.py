"""A stand-in for PyTorch Lightning's module, so that a GPT that is written as one is read without the package."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

PACKAGES = ("lightning", "pytorch_lightning")


class LightningModule(nn.Module):
    """A module with what Lightning adds to construction and forward pass; what it adds to training does nothing.

    https://lightning.ai/docs/pytorch/stable/common/lightning_module.html
    """

    def save_hyperparameters(self, *names: Any, ignore: Any = (), **_: Any) -> None:
        """Put the arguments of the caller's `__init__`, or those of these names, into `self.hparams`."""
        frame = inspect.currentframe()
        assert frame is not None
        assert frame.f_back is not None
        given = inspect.getargvalues(frame.f_back)
        values = {name: given.locals[name] for name in given.args if given.locals[name] is not self}
        values |= given.locals.get(given.keywords or "", {})
        left_out = {ignore} if isinstance(ignore, str) else set(ignore)
        chosen = [name for name in values if name not in left_out and (not names or name in names)]
        self.hparams = _Hyperparameters(**{name: values[name] for name in chosen})

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next((each.device for each in self.parameters()), torch.device("cpu"))

    def log(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    log_dict = log


class _Hyperparameters(SimpleNamespace):
    """Settings that are read as attributes and as keys."""

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]


def stand_in(name: str) -> Any:
    """Return what takes the place of `lightning`'s `name`; None for what the definition of a model does not need."""
    return {"LightningModule": LightningModule, "seed_everything": lambda seed=None, **_: seed}.get(name)
