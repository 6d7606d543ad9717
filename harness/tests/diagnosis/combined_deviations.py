"""A right GPT-2, and deviations from it that people combine: each is a change of its text."""

from __future__ import annotations

from dataclasses import dataclass

GPT = """
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Settings:
    vocab_size: int = 50257
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768


class Attention(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.heads = s.n_head
        self.inputs = nn.Linear(s.n_embd, 3 * s.n_embd)
        self.output = nn.Linear(s.n_embd, s.n_embd)

    def forward(self, x):
        rows, time, width = x.shape
        q, k, v = self.inputs(x).view(rows, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT
        scores = scores / math.sqrt(width // self.heads)
        hidden = torch.ones(time, time, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
        weights = scores.softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(rows, time, width)
        return self.output(mixed)


class FeedForward(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.wide = nn.Linear(s.n_embd, 4 * s.n_embd)
        self.narrow = nn.Linear(4 * s.n_embd, s.n_embd)

    def forward(self, x):
        return self.narrow(F.gelu(self.wide(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(s.n_embd), nn.LayerNorm(s.n_embd)
        self.attention, self.feed_forward = Attention(s), FeedForward(s)

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        x = x + self.feed_forward(self.norm_2(x))
        return x


class GPT(nn.Module):
    def __init__(self, s: Settings):
        super().__init__()
        self.tokens = nn.Embedding(s.vocab_size, s.n_embd)
        self.places = nn.Embedding(s.block_size, s.n_embd)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.n_layer))
        self.last_norm = nn.LayerNorm(s.n_embd)
        self.head = nn.Linear(s.n_embd, s.vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        for name, p in self.named_parameters():
            if p.ndim == 2:
                p.data.normal_(0, 0.02 / math.sqrt(2 * s.n_layer) if "output" in name or "narrow" in name else 0.02)
            elif name.endswith("bias"):
                p.data.zero_()

    def forward(self, ids, targets=None):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.last_norm(x))
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss
"""


@dataclass(frozen=True)
class Deviation:
    """Changes of the text, and the ids that may name them; none for what is no deviation."""

    faults: frozenset[str]
    changes: tuple[tuple[str, str], ...]

    def apply(self, text: str) -> str:
        """Return the text with the changes. Each must change something."""
        for find, put in self.changes:
            assert find in text, find
            text = text.replace(find, put)
        return text


def deviation(faults: str, *changes: tuple[str, str]) -> Deviation:
    """Return a deviation. `faults`: ids, separated by spaces."""
    return Deviation(frozenset(faults.split()), changes)


SINUSOIDS = """
        angles = torch.arange(ids.shape[1])[:, None] / 10000 ** (torch.arange(0, x.shape[-1], 2) / x.shape[-1])
        x = x + torch.stack((angles.sin(), angles.cos()), -1).flatten(1)
"""
STORED_SINUSOIDS = """
        angles = torch.arange(s.block_size).float()[:, None] * torch.exp(
            torch.arange(0, s.n_embd, 2).float() * (-math.log(10000.0) / s.n_embd)
        )
        self.register_buffer("places", torch.stack((angles.sin(), angles.cos()), -1).flatten(1))
"""
PLACES = " + self.places(torch.arange(ids.shape[1]))"
ADDED = (
    "x = x + self.attention(self.norm_1(x))\n        x = x + self.feed_forward(self.norm_2(x))",
    "a = self.attention(self.norm_1(x))\n        m = self.feed_forward(self.norm_2(x))\n        x = x + a + m",
)
POST = (
    ("x = x + self.attention(self.norm_1(x))", "x = self.norm_1(x + self.attention(x))"),
    ("x = x + self.feed_forward(self.norm_2(x))", "x = self.norm_2(x + self.feed_forward(x))"),
)
DROPPED = (
    'return self.narrow(F.gelu(self.wide(x), approximate="tanh"))',
    'return F.dropout(self.narrow(F.gelu(self.wide(x), approximate="tanh")), 0.3, self.training)',
)
ROTATED = """
        pairs = width // self.heads // 2
        angles = torch.arange(time)[:, None] * 10000 ** (-torch.arange(pairs) / pairs)
        cos, sin = angles.cos(), angles.sin()
        q, k = (torch.cat((a * cos - b * sin, b * cos + a * sin), -1) for a, b in (t.chunk(2, -1) for t in (q, k)))
        scores = q @ k.mT
"""
STORED_ROTATIONS = """
        pairs = s.n_embd // s.n_head // 2
        angles = torch.outer(torch.arange(s.block_size), 1 / 10000 ** (torch.arange(pairs) / pairs))
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles), persistent=False)
"""
TURNED = """
        q, k = (
            torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous()) * self.turns).flatten(-2)
            for t in (q, k)
        )
        scores = q @ k.mT
"""
SPLIT = "        q, k, v = self.inputs(x).view(rows, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)\n"
FEW_KEYS = """        q = self.queries(x).view(rows, time, self.heads, -1).transpose(1, 2)
        k, v = self.shared(x).view(rows, time, 2, self.heads // 2, -1).permute(2, 0, 3, 1, 4)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
"""
NO_TABLE = ("        self.places = nn.Embedding(s.block_size, s.n_embd)\n", "")
DEVIATIONS: dict[str, Deviation] = {
    "post-norm": deviation("post-norm", *POST),
    "parallel": deviation("parallel-block", ADDED),
    "no mask": deviation("mask-missing", ('scores = scores.masked_fill(hidden, float("-inf"))', "")),
    "mask inverted": deviation("mask-inverted mask-transposed", ("torch.bool).triu(1)", "torch.bool).tril()")),
    "mask of next": deviation("mask-allows-next", ("triu(1)", "triu(2)")),
    "relu": deviation("mlp-relu", ('F.gelu(self.wide(x), approximate="tanh")', "F.relu(self.wide(x))")),
    "silu": deviation("mlp-silu", ('F.gelu(self.wide(x), approximate="tanh")', "F.silu(self.wide(x))")),
    "exact gelu": deviation("gelu-erf-for-tanh", ('F.gelu(self.wide(x), approximate="tanh")', "F.gelu(self.wide(x))")),
    "rms norm": deviation("rms-norm", ("nn.LayerNorm(s.n_embd)", "nn.RMSNorm(s.n_embd)")),
    "rms norm 1e-6": deviation("rms-norm", ("nn.LayerNorm(s.n_embd)", "nn.RMSNorm(s.n_embd, eps=1e-6)")),
    "rms norm 3e-5": deviation("rms-norm", ("nn.LayerNorm(s.n_embd)", "nn.RMSNorm(s.n_embd, eps=3e-5)")),
    "epsilon": deviation("ln-eps-wrong", ("nn.LayerNorm(s.n_embd)", "nn.LayerNorm(s.n_embd, eps=1e-6)")),
    "no linear biases": deviation(
        "bias-missing bias-free",
        ("3 * s.n_embd)", "3 * s.n_embd, bias=False)"),
        ("nn.Linear(s.n_embd, s.n_embd)", "nn.Linear(s.n_embd, s.n_embd, bias=False)"),
        ("4 * s.n_embd)", "4 * s.n_embd, bias=False)"),
        ("nn.Linear(4 * s.n_embd, s.n_embd)", "nn.Linear(4 * s.n_embd, s.n_embd, bias=False)"),
    ),
    "no qkv bias": deviation("qkv-bias-missing", ("3 * s.n_embd)", "3 * s.n_embd, bias=False)")),
    "untied": deviation("head-untied", ("        self.head.weight = self.tokens.weight\n", "")),
    "head bias": deviation(
        "head-has-bias",
        ("nn.Linear(s.n_embd, s.vocab_size, bias=False)", "nn.Linear(s.n_embd, s.vocab_size)"),
    ),
    "scale of width": deviation("scale-by-d-model", ("math.sqrt(width // self.heads)", "math.sqrt(width)")),
    "no scale": deviation("scale-missing", ("        scores = scores / math.sqrt(width // self.heads)\n", "")),
    "stream normed": deviation(
        "ln-before-residual",
        (
            "        x = x + self.attention(self.norm_1(x))\n",
            "        x = self.norm_1(x)\n        x = x + self.attention(x)\n",
        ),
        ("x = x + self.feed_forward(self.norm_2(x))", "x = self.norm_2(x)\n        x = x + self.feed_forward(x)"),
    ),
    "no last norm": deviation("final-ln-missing", ("self.head(self.last_norm(x))", "self.head(x)")),
    "no positions": deviation("pos-missing", NO_TABLE, (PLACES, "")),
    "sinusoids": deviation("pos-sinusoidal", NO_TABLE, (PLACES, SINUSOIDS)),
    "stored sinusoids": deviation(
        "pos-sinusoidal",
        ("        self.places = nn.Embedding(s.block_size, s.n_embd)\n", STORED_SINUSOIDS),
        (PLACES, " + self.places[: ids.shape[1]]"),
    ),
    "scaled embedding": deviation(
        "embedding-scaled",
        ("self.tokens(ids) +", "self.tokens(ids) * x_scale +"),
        (
            "        x = self.tokens(ids)",
            "        x_scale = math.sqrt(self.tokens.weight.shape[1])\n        x = self.tokens(ids)",
        ),
    ),
    "rotary": deviation("rotary-positions", NO_TABLE, (PLACES, ""), ("        scores = q @ k.mT\n", ROTATED)),
    "norms after branches": deviation(
        "post-norm",
        ("x = x + self.attention(self.norm_1(x))", "x = x + self.norm_1(self.attention(x))"),
        ("x = x + self.feed_forward(self.norm_2(x))", "x = x + self.norm_2(self.feed_forward(x))"),
    ),
    "complex rotary": deviation(
        "rotary-positions",
        ("        self.places = nn.Embedding(s.block_size, s.n_embd)\n", STORED_ROTATIONS),
        (PLACES, ""),
        (
            "            x = block(x)\n",
            "            block.attention.turns = self.turns[: ids.shape[1]]\n            x = block(x)\n",
        ),
        ("        scores = q @ k.mT\n", TURNED),
    ),
    "swiglu": deviation(
        "swiglu",
        ('F.gelu(self.wide(x), approximate="tanh")', "F.silu(self.gate(x)) * self.wide(x)"),
        ("        self.wide =", "        self.gate = nn.Linear(s.n_embd, 4 * s.n_embd)\n        self.wide ="),
    ),
    "grouped queries": deviation(
        "grouped-queries",
        (
            "        self.inputs = nn.Linear(s.n_embd, 3 * s.n_embd)",
            "        self.queries, self.shared = nn.Linear(s.n_embd, s.n_embd), nn.Linear(s.n_embd, s.n_embd)",
        ),
        (
            SPLIT,
            FEW_KEYS,
        ),
    ),
    "no projection": deviation("attn-out-proj-skipped", ("return self.output(mixed)", "return mixed")),
    "dropout": deviation("", ("return self.output(mixed)", "return F.dropout(self.output(mixed), 0.3, self.training)")),
    "framework start": deviation(
        "init-framework-default",
        ("            if p.ndim == 2:", "            if False:"),
        ("elif name.endswith", "elif False and name.endswith"),
    ),
    "probabilities": deviation("logits-softmax", ("return logits, loss", "return logits.softmax(-1), loss")),
    "mlp first": deviation(
        "mlp-before-attention",
        (
            "x = x + self.attention(self.norm_1(x))\n        x = x + self.feed_forward(self.norm_2(x))",
            "x = x + self.feed_forward(self.norm_2(x))\n        x = x + self.attention(self.norm_1(x))",
        ),
    ),
}
# Combinations that people write: the first five are in every test run, the others with GPT_HARNESS_FAULTS=all.
COMBINATIONS: tuple[tuple[str, ...], ...] = (
    ("post-norm", "no mask"),
    ("rms norm", "exact gelu", "no linear biases"),
    ("head bias", "untied", "relu"),
    ("dropout", "post-norm", "relu"),
    ("post-norm", "stored sinusoids", "relu", "no last norm"),
    ("scaled embedding", "post-norm", "stored sinusoids", "mask inverted", "relu", "no last norm"),
    ("post-norm", "relu"),
    ("post-norm", "dropout"),
    ("post-norm", "exact gelu"),
    ("post-norm", "no last norm"),
    ("post-norm", "scale of width"),
    ("post-norm", "sinusoids"),
    ("scaled embedding", "post-norm", "sinusoids", "relu"),
    ("post-norm", "rms norm 1e-6"),
    ("post-norm", "mask of next"),
    ("post-norm", "no mask", "no scale"),
    ("parallel", "no mask"),
    ("parallel", "relu"),
    ("parallel", "rms norm 1e-6", "no linear biases"),
    ("mlp first", "silu"),
    ("mlp first", "no mask"),
    ("no mask", "no scale"),
    ("no mask", "relu", "no last norm"),
    ("no mask", "scale of width", "no projection"),
    ("mask inverted", "exact gelu"),
    ("rms norm 3e-5", "silu", "untied"),
    ("rms norm", "no mask"),
    ("rms norm 1e-6", "no positions"),
    ("rms norm 1e-6", "scale of width", "mask of next"),
    ("epsilon", "exact gelu"),
    ("epsilon", "no mask", "relu"),
    ("no qkv bias", "scale of width"),
    ("no qkv bias", "untied", "framework start", "exact gelu"),
    ("no positions", "no mask"),
    ("scaled embedding", "sinusoids"),
    ("untied", "head bias", "framework start"),
    ("untied", "no last norm", "no scale"),
    ("probabilities", "untied"),
    ("probabilities", "relu"),
    ("framework start", "no linear biases"),
    ("dropout", "no mask"),
    ("rotary", "rms norm 1e-6"),
    ("complex rotary", "rms norm 1e-6", "swiglu"),
    ("norms after branches", "scale of width", "relu"),
    ("stream normed", "scale of width"),
    ("swiglu", "rms norm", "no linear biases"),
    ("grouped queries", "rms norm 1e-6"),
    ("swiglu", "rotary", "rms norm 1e-6", "no linear biases", "untied"),
    ("swiglu", "rotary", "rms norm 1e-6", "no linear biases", "no mask"),
    ("grouped queries", "post-norm", "no mask"),
)
