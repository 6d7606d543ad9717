"""The outside oracle: Hugging Face's GPT-2 with eager attention, wrapped as a Model like any subject's."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import logging
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.core.error_text import is_user_file
from harness.core.garbage import lasting_objects
from harness.core.originals import ORIGINALS, originals, with_originals
from harness.core.shipped_packages import installed_packages, restore_installed
from harness.core.sizes import Size
from harness.oracle.declared import declared_gpt2
from harness.oracle.probe_weights import State
from harness.subjects.adapters.weight_discovery.name_map import map_by_names
from harness.subjects.model import Model

if TYPE_CHECKING:
    from transformers import GPT2Config


@with_originals
def oracle(size: Size, state: State, dtype: str) -> Model:
    """Return Hugging Face's GPT2LMHeadModel with the weights `state` in `dtype`, in eval mode.

    In float32 it shares memory with `state`. Inside a block of `compared_with`, return GPT-2 with the declared
    deviations instead.
    """
    if (gpt2 := declared_gpt2()) is not None:
        return gpt2.oracle(size, state, dtype)
    load_installed()
    from transformers import GPT2LMHeadModel  # takes seconds to import

    with torch.device("meta"):
        module = GPT2LMHeadModel(huggingface_config(size))
    cast = {name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items()}
    cast["lm_head.weight"] = cast["transformer.wte.weight"]
    module.load_state_dict(cast, assign=True)
    module.tie_weights()
    return as_model(module.eval(), size)


def as_model(module: nn.Module, size: Size) -> Model:
    """Return the handle on a GPT2LMHeadModel."""
    return Model(module, size, _call, map_by_names(module, size))


def huggingface_config(size: Size) -> GPT2Config:
    """Return the GPT2Config of `size`, without dropout, with eager attention."""
    from transformers import GPT2Config  # takes seconds to import
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    config = GPT2Config(
        vocab_size=size.vocab_size,
        n_positions=size.context,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,  # generation ends by length only
        eos_token_id=None,
    )
    config._attn_implementation = "eager"
    return config


@with_originals
def _call(module: nn.Module, ids: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    # Never labels=: Hugging Face would shift the targets once more.
    return module(ids, use_cache=False).logits, None


MODULES = ("transformers.models.gpt2.modeling_gpt2", "transformers.generation.utils")


def protect_oracle() -> None:
    """Record the functions that verdicts are computed with, before a subject is imported.

    Hugging Face's are recorded when they are imported, which takes seconds; if a subject is first, before it has them.
    """
    ORIGINALS.record()
    if "transformers" not in sys.modules and not any(isinstance(finder, _RecordedFirst) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RecordedFirst())


def load_installed() -> None:
    """Have the installed transformers in sys.modules where a subject has a file of that name; it has imported its own.

    So are the packages that it imports.
    """
    if (loaded := sys.modules.get("transformers")) is not None:
        if not is_user_file(str(getattr(loaded, "__file__", "") or "")):
            return
        restore_installed("transformers")
    with installed_packages(give_way=True), lasting_objects():
        importlib.import_module(MODULES[0])
    ORIGINALS.extend()


class _RecordedFirst(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A finder that imports all that the oracle needs of transformers, and records it, before the first import ends."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of transformers; None for every other module, and for a user's own of that name."""
        if fullname != "transformers":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname)
        if spec is None or spec.origin is None or is_user_file(spec.origin):
            return None
        sys.meta_path.remove(self)
        with originals(), lasting_objects():
            for name in MODULES:
                importlib.import_module(name)
        ORIGINALS.extend()
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return the module, which is imported by now."""
        self.module = sys.modules[spec.name]
        self.spec = self.module.__spec__
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own spec back."""
        self.module.__spec__ = self.spec
