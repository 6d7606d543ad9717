"""transformers' GPT-2 as a peer: eager or SDPA attention, with a growing cache or one of fixed size."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES, Size
from harness.oracle.hugging_face import as_model, huggingface_config, oracle
from harness.oracle.probe_weights import state_of
from harness.subjects.adapters import generation
from harness.subjects.model import Model


class HuggingFace:
    """transformers' GPT-2 as a subject.

    attention: `eager` or `sdpa`.
    cache: `dynamic` grows, `static` is as long as the context.
    """

    def __init__(self, attention: str, *, cache: Literal["dynamic", "static"] = "dynamic") -> None:
        self.attention = attention
        self.cache = cache
        self.name = f"transformers:GPT2LMHeadModel ({attention}{', static cache' if cache == 'static' else ''})"

    def build(self, size: Size, *, seed: int = 0, dtype: str = "float32", device: str = "cpu", **options: Any) -> Model:
        """Return the model in eval mode, with the probe weights, for any `seed`. Raises MissingAbility for options."""
        if options:
            raise MissingAbility(f"{self.name} is built without options, got {sorted(options)}")
        # A copy, because the oracle shares the memory of a float32 state dict, and a training step writes into it.
        model = oracle(size, {name: tensor.clone() for name, tensor in state_of(size, "probe").items()}, dtype)
        module: Any = model.module
        module.set_attn_implementation(self.attention)
        module.generation_config.cache_implementation = "static" if self.cache == "static" else None
        module.to(device)
        return model

    def start(self, size: Size) -> nn.Module:
        """Return the module with its own initialisation, as its users get it."""
        from transformers import GPT2LMHeadModel

        return GPT2LMHeadModel(huggingface_config(size))

    def load_checkpoint(self, directory: Path) -> Model:
        """Load the model of a directory with from_pretrained."""
        from transformers import GPT2LMHeadModel

        module = GPT2LMHeadModel.from_pretrained(directory, attn_implementation=self.attention).eval()
        config = module.config
        size = next(size for size in SIZES.values() if (size.layers, size.width) == (config.n_layer, config.n_embd))
        return as_model(module, size)

    def save_checkpoint(self, model: Model, directory: Path) -> None:
        """Save the model to a directory with save_pretrained."""
        module: Any = model.module
        module.save_pretrained(directory)

    def generate(self, model: Model, ids: Tensor, new_tokens: int, **settings: Any) -> Tensor:
        """Generate with transformers' own method, ended by the length only; see `Generates.generate`.

        Raises MissingAbility beyond the context: it does not slide a window.
        """
        how = generation.generate_function_of(type(model.module), None)
        assert how is not None
        return generation.generate(how, self.name, model.module, model.size, ids, new_tokens, **settings)

    def drafts(self, model: Model) -> tuple[str, ...]:
        """Return the drafts of its assisted generation that are compared."""
        return ("model",)

    def speculation_line(self, model: Model, draft: str) -> tuple[str, int]:
        """Return the file of its method; its line is not looked up."""
        return str(inspect.getsourcefile(type(model.module))), 1

    def speculate(
        self,
        model: Model,
        draft: Model | str,
        ids: Tensor,
        new_tokens: int,
        *,
        lookahead: int = 4,
        temperature: float = 1.0,
        **settings: Any,
    ) -> Tensor:
        """Continue greedily by assisted generation, always with `lookahead` drafts; see `Speculates.speculate`.

        Raises MissingAbility for sampling and for a draft that is no model.
        """
        if isinstance(draft, str) or temperature != 0:
            raise MissingAbility(f"{self.name} is compared in greedy assisted generation by a model")
        assistant: Any = draft.module
        assistant.generation_config.num_assistant_tokens = lookahead
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
        assistant.generation_config.assistant_confidence_threshold = 0.0  # drafts are not ended early
        module: Any = model.module
        module.generation_config.eos_token_id = assistant.generation_config.eos_token_id = None
        answer: Tensor = module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            assistant_model=assistant,
        )
        return answer

    def new_cache(self, model: Model, batch_size: int) -> Any:
        """Return an empty cache of transformers."""
        from transformers import DynamicCache, StaticCache

        if self.cache == "static":
            module: Any = model.module
            return StaticCache(config=module.config, max_cache_len=model.size.context)
        return DynamicCache()

    def step(self, model: Model, ids: Tensor, cache: Any) -> Tensor:
        """Append `ids` (B, T) to the cache and return the logits (B, T, V) of those positions."""
        logits: Tensor = model.module(ids, past_key_values=cache, use_cache=True).logits
        return logits
