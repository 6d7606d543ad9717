"""Models for the arms, each built once a module, and holding the same weights whenever an arm takes one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.errors import MissingAbility
from harness.oracle import oracle
from harness.size import Size
from harness.states import state
from harness.subject import Caches, Generates, Model, Subject


class HuggingFace:
    """transformers' GPT-2 as a subject of its own: a peer to compare with."""

    def __init__(self, attention: str) -> None:
        self.attention = attention
        self.name = f"transformers:GPT2LMHeadModel ({attention})"

    def build(self, size: Size, *, seed: int = 0, dtype: str = "float32", device: str = "cpu", **options: Any) -> Model:
        """The model in eval mode, with the probe weights; it has no other seed and no options."""
        if options:
            raise MissingAbility(f"{self.name} is built without options, got {sorted(options)}")
        # A copy: the oracle shares a float32 state's memory, and a training step writes into it.
        model = oracle(size, {name: tensor.clone() for name, tensor in state(size.name, "probe").items()}, dtype)
        model.module.set_attn_implementation(self.attention)  # type: ignore[operator]
        model.module.to(device)
        return model

    def new_cache(self, model: Model, batch_size: int) -> Any:
        """transformers' own growing cache."""
        from transformers import DynamicCache

        return DynamicCache()

    def step(self, model: Model, ids: Tensor, cache: Any) -> Tensor:
        """Append `ids` (B, T) to the cache; the logits (B, T, V) of those positions."""
        logits: Tensor = model.module(ids, past_key_values=cache, use_cache=True).logits
        return logits


class Workshop:
    """Builds models of one size on one device, and keeps them until `close`."""

    def __init__(self, subject: Subject, size: Size, device: str) -> None:
        self.subject = subject
        self.size = size
        self.device = device
        self._models: dict[tuple[Any, ...], Model] = {}
        self._own_weights: dict[int, dict[str, Tensor]] = {}

    def model(
        self,
        who: Subject | None = None,
        *,
        dtype: str = "float32",
        copy: int = 0,
        stored_in: torch.dtype | None = None,
        **options: Any,
    ) -> Model:
        """A model of `who` (the subject, if not named) with the run's weights; `copy` tells twins apart.

        With `stored_in`, its weights are rounded to values that this type can hold.
        """
        who = who or self.subject
        key = (who.name, dtype, copy, *sorted(options.items()))
        if key not in self._models:
            built = who.build(self.size, seed=0, dtype=dtype, device=self.device, **options)
            self._models[key] = built
            if built.weight_map is None:
                weights = {name: tensor.clone() for name, tensor in built.module.state_dict().items()}
                self._own_weights[id(built)] = weights
        return self.restore(self._models[key], stored_in)

    def restore(self, model: Model, stored_in: torch.dtype | None = None) -> Model:
        """Put the weights back as every arm begins: the probe weights, or the seed's where nobody can map them.

        Probe weights, because under GPT-2's own start a wrong bias or gain changes no output at all.
        """
        if model.weight_map is not None:
            model.load(state(self.size.name, "probe"))
        else:
            model.module.load_state_dict(self._own_weights[id(model)])
        model.module.zero_grad(set_to_none=True)
        round_parameters(model, stored_in)
        return model

    def release_truth(self) -> None:
        """Let the float64 models go: each is a gigabyte, and has done its work once it has spoken."""
        for key in [key for key in self._models if key[1] == "float64"]:
            self._own_weights.pop(id(self._models.pop(key)), None)

    def close(self) -> None:
        """Let every model go."""
        self._models.clear()
        self._own_weights.clear()
        if torch.device(self.device).type == "cuda":
            torch.cuda.empty_cache()


def round_parameters(model: Model, dtype: torch.dtype | None) -> None:
    """Give every parameter a value that `dtype` can hold; for None, leave them."""
    if dtype is not None:
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.copy_(parameter.to(dtype))


def caching(who: Subject) -> Caches:
    """`who`, if it decodes step by step with a cache; MissingAbility otherwise."""
    if isinstance(who, Caches):
        return who
    raise MissingAbility(f"{who.name} has no ability 'Caches': it does not decode step by step with a cache")


def generating(who: Subject) -> Generates:
    """`who`, if it continues a prompt; MissingAbility otherwise."""
    if isinstance(who, Generates):
        return who
    raise MissingAbility(f"{who.name} has no ability 'Generates': it does not continue a prompt")
