"""Wrong GPTs that the fault catalogue cannot derive from its one specimen: other attentions, samplers and NaN.

All other mistakes are faults of `harness/faults/catalogue.toml`.
"""

import torch
from torch import nn

from gpt import GPT, CausalSelfAttention, LoopedSelfAttention


class Wrong(GPT):
    """The reference, changed by `damage` after construction."""

    def __init__(self, config, **options):
        super().__init__(config, **options)
        self.damage()

    def damage(self):
        raise NotImplementedError


# one attention of several: the specimen has one


class FlashForgetsTheMask(Wrong):
    """Only the flash path: the naive one is right."""

    def damage(self):
        for attention in self.modules():
            if isinstance(attention, CausalSelfAttention) and attention.flash:
                attention.attend_flash = lambda q, k, v: nn.functional.scaled_dot_product_attention(q, k, v)


class LoopedHeadLost(Wrong):
    """Only the looped path: its second head returns zeros."""

    def damage(self):
        for attention in self.modules():
            if isinstance(attention, LoopedSelfAttention):
                attention.heads[1].register_forward_hook(lambda m, args, out: torch.zeros_like(out))


class NaiveCacheMaskTopLeft(Wrong):
    """Only the naive path, and only with a cache."""

    def damage(self):
        for attention in self.modules():
            if isinstance(attention, CausalSelfAttention) and not attention.flash:
                attention.attend_naive = lambda q, k, v, a=attention: (
                    (q @ k.mT / q.size(-1) ** 0.5)
                    .masked_fill(~a.mask[: q.size(-2), : k.size(-2)], -torch.inf)
                    .softmax(-1)
                    @ v
                )


# samplers whose probabilities cannot be observed: judged by the tokens that they draw


def by_inversion(probabilities, generator):
    """Return one token a row: the first whose cumulated probability is above a uniform random number."""
    cumulated = probabilities.double().cumsum(-1)
    drawn = torch.rand(len(cumulated), 1, generator=generator, dtype=torch.float64) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, drawn).clamp(max=cumulated.size(-1) - 1)


class DrawsByInversion(GPT):
    """Correct, but not by `torch.multinomial`."""

    power = 1.0
    extra = 0

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, *, temperature=1.0, top_k=None, top_p=None, seed=None):
        from harness.measures.generation.sampling import next_token_distribution

        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for _ in range(max_new_tokens):
            logits = self(idx[:, -self.config.block_size :])[0][:, -1]
            probabilities = next_token_distribution(
                logits,
                temperature=temperature**self.power,
                top_k=min(top_k + self.extra, logits.size(-1)) if top_k else 0,
                top_p=1.0 if top_p is None else top_p,
            )
            idx = torch.cat([idx, by_inversion(probabilities, generator)], dim=1)
        return idx


class DrawsByInversionTemperatureTwice(DrawsByInversion):
    power = 2.0


class DrawsByInversionTopKPlusOne(DrawsByInversion):
    extra = 1


# no usable answers


class Babbles(Wrong):
    def damage(self):
        nan = float("nan")
        self.register_forward_hook(lambda m, args, out: (out[0] * nan, out[1] if out[1] is None else out[1] * nan))


class OneTokenShort(Wrong):
    def damage(self):
        self.register_forward_hook(lambda m, args, out: (out[0][..., :-1], out[1]))


class RaisesOnConstruction(GPT):
    def __init__(self, config, **options):
        raise ZeroDivisionError("heads per nothing")


class ExitsTheProcess(Wrong):
    def damage(self):
        self.register_forward_hook(lambda m, args, out: raise_exit())


def raise_exit():
    raise SystemExit(3)


class ChangesGlobals(Wrong):
    def damage(self):
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
