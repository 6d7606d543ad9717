"""One right GPT-2 and many ways to call it: caches, masks, flags, targets and answers in odd places."""

import math
from collections import namedtuple
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.grow, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, mask=None):
        time = x.shape[-2]
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for y in self.c_attn(self.ln_1(x)).chunk(3, -1))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if mask is None:
            mask = torch.ones(time, time, dtype=torch.bool, device=x.device).tril()
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        x = x + self.c_proj((scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2))
        return x + self.shrink(F.gelu(self.grow(self.ln_2(x)), approximate="tanh"))


class Base(nn.Module):
    def __init__(self, vocab_size, n_ctx, n_layer, n_head, n_embd):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, n_embd), nn.Embedding(n_ctx, n_embd)
        self.blocks = nn.ModuleList(Layer(n_embd, n_head) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd)

    def stream(self, ids, mask=None):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[-1], device=ids.device))
        for block in self.blocks:
            x = block(x, mask)
        return self.ln_f(x)

    def head(self, x):
        return F.linear(x, self.wte.weight)

    def logits(self, ids, mask=None):
        return self.head(self.stream(ids, mask))


def cross_entropy(logits, targets, **options):
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), **options)


class ListOfCaches(Base):
    """One place a layer, which the caller makes."""

    def forward(self, ids, caches=None, targets=None):
        for layer in range(len(self.blocks)):
            caches[layer] = "seen"
        logits = self.logits(ids)
        return (logits, None) if targets is None else (logits, cross_entropy(logits, targets))


class RequiredPast(Base):
    """An entry for each layer, exactly."""

    def forward(self, ids, past):
        assert all(entry is None for _, entry in zip(self.blocks, past, strict=True))
        return self.logits(ids), past


class PastIsADict(Base):
    def forward(self, ids, memory):
        memory["length"] = memory.get("length", 0) + ids.shape[1]
        return self.logits(ids)


class PairsOfNone(Base):
    def forward(self, ids, kv):
        for key, value in kv:
            assert key is value is None
        return self.logits(ids)


class MaskOfPadding(Base):
    """1 for a token, 0 for padding."""

    def forward(self, ids, attention_mask):
        time = ids.shape[1]
        hidden = ~attention_mask.bool()[:, None, None, :] | torch.ones(time, time, dtype=torch.bool).triu(1)
        return self.logits(ids, ~hidden)


class MaskOfTheFuture(Base):
    """The caller makes the causal mask."""

    def forward(self, ids, mask):
        return self.logits(ids, mask == 1)


class MaskOfWhatIsHidden(Base):
    def forward(self, ids, mask):
        return self.logits(ids, ~mask)


class AddedMask(Base):
    def forward(self, ids, mask):
        return self.logits(ids, mask + 0.0)


class Flags(Base):
    def forward(self, ids, start_pos, use_cache, is_training):
        assert start_pos == 0
        assert not use_cache
        assert not is_training
        return self.logits(ids)


class CausalFlag(Base):
    """Any value of the flag gives logits; one of them hides the future."""

    def forward(self, ids, causal):
        seen = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool)
        return self.logits(ids, seen.tril() if causal else seen)


class OneSequence(Base):
    """Token ids (T,), as in a script that reads like the formula."""

    def forward(self, ids, targets=None):
        assert ids.ndim == 1
        logits = self.logits(ids)
        return (logits, cross_entropy(logits, targets)) if targets is not None else logits


class WantedTokens(Base):
    """Targets under a name that nobody uses."""

    def forward(self, ids, wanted=None, verbose=False):
        logits = self.logits(ids)
        return {"loss": None if wanted is None else cross_entropy(logits, wanted), "scores": logits}


class TargetsFirst(Base):
    def forward(self, targets, tokens):
        logits = self.logits(tokens)
        return cross_entropy(logits, targets), logits


class LossAlone(Base):
    def forward(self, ids, targets=None):
        return self.logits(ids) if targets is None else cross_entropy(self.logits(ids), targets)


class UnshiftedLabels(Base):
    def forward(self, input_ids, labels=None):
        logits = self.logits(input_ids)
        return SimpleNamespace(loss=None if labels is None else cross_entropy(logits, labels), lm_logits=logits)


class ShiftedLabels(Base):
    """As Hugging Face has them: the labels are the ids."""

    def forward(self, input_ids, labels=None):
        logits = self.logits(input_ids)
        return logits if labels is None else (cross_entropy(logits[:, :-1], labels[:, 1:]), logits)


Answer = namedtuple("Answer", "hidden cache logits")


class NamedAnswer(Base):
    def forward(self, ids):
        x = self.stream(ids)
        return Answer(x, [(x, x)], self.head(x))


class NestedAnswer(Base):
    """The hidden states first, and the loss in a tuple of its own."""

    def forward(self, ids, targets=None):
        x = self.stream(ids)
        logits = self.head(x)
        return x, (logits, (cross_entropy(logits, targets) if targets is not None else None,))


class WeightedLoss(Base):
    """With targets it wants the weight of each, too."""

    def forward(self, ids, targets=None, weight=None):
        logits = self.logits(ids)
        if targets is None:
            return logits, None
        each = cross_entropy(logits, targets, reduction="none")
        return logits, (each * weight.reshape(-1)).sum() / weight.sum()


class MaskedLoss(Base):
    """The caller says which targets count."""

    def forward(self, ids, targets, loss_mask):
        logits = self.logits(ids)
        each = cross_entropy(logits, targets, reduction="none")
        return logits, (each * loss_mask.reshape(-1)).sum() / loss_mask.sum()


class BrokenLoss(Base):
    """Wrong: the loss raises, whatever it is given."""

    def forward(self, ids, targets=None, weight=None):
        logits = self.logits(ids)
        return logits, None if targets is None else F.cross_entropy(logits, targets)


class NoMask(Base):
    """Wrong: every position sees all others, and nothing that the caller gives hides them."""

    def forward(self, ids, attention_mask):
        return self.logits(ids, torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool))
