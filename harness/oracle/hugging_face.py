"""The outside oracle: Hugging Face's GPT-2 with eager attention, wrapped as a Model like any subject's."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.core.sizes import Size
from harness.oracle.declared import declared_gpt2
from harness.oracle.probe_weights import State
from harness.subjects.adapters.weight_discovery.name_map import map_by_names
from harness.subjects.model import Model

if TYPE_CHECKING:
    from transformers import GPT2Config


def oracle(size: Size, state: State, dtype: str) -> Model:
    """Return Hugging Face's GPT2LMHeadModel with the weights `state` in `dtype`, in eval mode.

    In float32 it shares memory with `state`. Inside a block of `compared_with`, return GPT-2 with the declared
    deviations instead.
    """
    from transformers import GPT2LMHeadModel  # takes seconds to import

    if (gpt2 := declared_gpt2()) is not None:
        return gpt2.oracle(size, state, dtype)

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


def _call(module: nn.Module, ids: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    # Never labels=: Hugging Face would shift the targets once more.
    return module(ids, use_cache=False).logits, None
