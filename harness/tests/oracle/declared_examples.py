"""A right GPT-2, what makes each declared deviation of it, and the mistakes that are put beneath them."""

from pathlib import Path

from harness.oracle.deviations import Deviation, read

GPT = """\
import math
import torch
from torch import nn
from torch.nn import functional as F


def placed(q, k):
    return q, k


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.size = dim // heads
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.o_proj = nn.Linear(dim, dim)

    def forward(self, x):
        projections = self.q_proj, self.k_proj, self.v_proj
        q, k, v = (each(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for each in projections)
        q, k = placed(q, k)
        scores = q @ k.mT / math.sqrt(self.size)
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        return self.o_proj(mixed)


class FeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.up_proj = nn.Linear(dim, 4 * dim)
        self.down_proj = nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), FeedForward(dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, vocab_size, context_length, d_model, n_layers, n_heads):
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(vocab_size, d_model), nn.Embedding(context_length, d_model)
        self.blocks = nn.ModuleList(Block(d_model, n_heads) for _ in range(n_layers))
        self.final_norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        self.head.weight = self.tok_emb.weight

    def forward(self, ids):
        x = self.tok_emb(ids)
        x = x + self.pos_emb(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x))
"""
Changes = tuple[tuple[str, str], ...]  # text, and what replaces it

NO_TABLE = (
    (", self.pos_emb = nn.Embedding(vocab_size, d_model), nn.Embedding(context_length", " = nn.Embedding(vocab_size"),
    ("        x = x + self.pos_emb(torch.arange(ids.shape[1]))\n", ""),
)
ROTATION = """\
def turned(x):
    angles = torch.outer(torch.arange(x.shape[-2]), 10000 ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1]))
    a, b = PAIRS
    cos, sin = angles.cos(), angles.sin()
    return JOINED


def placed(q, k):
    return turned(q), turned(k)
"""
HALVES = ROTATION.replace("PAIRS", "x.chunk(2, -1)").replace(
    "JOINED", "torch.cat((a * cos - b * sin, a * sin + b * cos), -1)"
)
NEIGHBOURS = ROTATION.replace("PAIRS", "x[..., ::2], x[..., 1::2]").replace(
    "JOINED", "torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)"
)
UNTURNED = "def placed(q, k):\n    return q, k\n"
GATE = (
    ("self.up_proj = nn.Linear(dim, 4 * dim)", "self.a, self.b = nn.Linear(dim, 3 * dim), nn.Linear(dim, 3 * dim)"),
    ("nn.Linear(4 * dim, dim)", "nn.Linear(3 * dim, dim)"),
)
ACTIVATED = 'F.gelu(self.up_proj(x), approximate="tanh")'
GROUPED = (
    ("nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)",
     "nn.Linear(dim, dim), nn.Linear(dim, dim // 2), nn.Linear(dim, dim // 2)"),
    ("        q, k = placed(q, k)\n",
     "        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)\n        q, k = placed(q, k)\n"),
)  # fmt: skip
SINES = """\
        C, T = x.shape[-1], ids.shape[1]
        angles = torch.outer(torch.arange(T), 10000 ** (-torch.arange(0, C, 2) / C))
        x = x + torch.stack((angles.sin(), angles.cos()), -1).flatten(1)
"""

# A name -> the declarations, as TOML without the reason, and the changes of the text that make it.
DEVIATIONS: dict[str, tuple[tuple[str, ...], Changes]] = {
    "RMSNorm": (("what = 'rms-norm'",), (("nn.LayerNorm(", "nn.RMSNorm("),)),
    "RMSNorm of another epsilon": (
        ("what = 'rms-norm'",),
        (("nn.LayerNorm(dim)", "nn.RMSNorm(dim, eps=3e-6)"),
         ("nn.LayerNorm(d_model)", "nn.RMSNorm(d_model, eps=3e-6)")),
    ),
    "LayerNorm of a stated epsilon": (
        ("what = 'ln-eps-wrong'\nepsilon = 1e-6",),
        (("nn.LayerNorm(dim)", "nn.LayerNorm(dim, 1e-6)"), ("nn.LayerNorm(d_model)", "nn.LayerNorm(d_model, 1e-6)")),
    ),
    "no biases": (
        ("what = 'bias-free'",),
        (("Linear(dim, dim)", "Linear(dim, dim, bias=False)"), ("dim, 4 * dim", "dim, 4 * dim, bias=False"),
         ("4 * dim, dim", "4 * dim, dim, bias=False"),
         ("Norm(dim", "Norm(dim, bias=False"), ("Norm(d_model", "Norm(d_model, bias=False")),
    ),
    "some biases": (
        ("what = 'bias-missing'\nbiases = ['attn.c_attn', 'attn.c_proj']",),
        (("nn.Linear(dim, dim)", "nn.Linear(dim, dim, bias=False)"),),
    ),
    "exact GELU": (("what = 'exact-gelu'",), ((', approximate="tanh"', ""),)),
    "ReLU": (("what = 'relu'",), ((ACTIVATED, "F.relu(self.up_proj(x))"),)),
    "SiLU": (("what = 'mlp-silu'",), ((ACTIVATED, "F.silu(self.up_proj(x))"),)),
    "QuickGELU": (("what = 'quick-gelu'",), ((ACTIVATED, "(lambda u: u * (1.702 * u).sigmoid())(self.up_proj(x))"),)),
    "SwiGLU": (("what = 'swiglu'",), (*GATE, (ACTIVATED, "F.silu(self.a(x)) * self.b(x)"))),
    "GeGLU, the gate second": (("what = 'geglu'",), (*GATE, (ACTIVATED, "self.a(x) * F.gelu(self.b(x))"))),
    "SwiGLU in one matrix": (
        ("what = 'swiglu'",),
        (("nn.Linear(dim, 4 * dim)", "nn.Linear(dim, 6 * dim)"), ("nn.Linear(4 * dim", "nn.Linear(3 * dim"),
         (ACTIVATED, "(lambda a, b: a * F.silu(b))(*self.up_proj(x).chunk(2, -1))")),
    ),
    "a narrow MLP": (("what = 'hidden-width'",), (("4 * dim", "2 * dim"),)),
    "rotary positions by halves": (("what = 'rotary-positions'",), (*NO_TABLE, (UNTURNED, HALVES))),
    "rotary positions by neighbours": (("what = 'rotary-positions'",), (*NO_TABLE, (UNTURNED, NEIGHBOURS))),
    "sinusoidal positions": (
        ("what = 'sinusoidal-positions'",),
        (NO_TABLE[0], ("        x = x + self.pos_emb(torch.arange(ids.shape[1]))\n", SINES)),
    ),
    "no positions": (("what = 'no-positions'",), NO_TABLE),
    "grouped queries": (("what = 'grouped-queries'",), GROUPED),
    "untied head": (("what = 'untied-head'",), (("        self.head.weight = self.tok_emb.weight\n", ""),)),
    "a bias in the head": (("what = 'head-bias'",), (("vocab_size, bias=False)", "vocab_size)"),)),
    "post-norm": (
        ("what = 'post-norm'",),
        (("x = x + self.attn(self.norm1(x))", "x = self.norm1(x + self.attn(x))"),
         ("return x + self.mlp(self.norm2(x))", "return self.norm2(x + self.mlp(x))")),
    ),
}  # fmt: skip

# A mistake -> the change of the text, and the places that a diagnosis may name.
MISTAKES: dict[str, tuple[tuple[str, str], tuple[str, ...]]] = {
    "the mask allows the next token": ((".triu(1)", ".triu(2)"), ("attn.mask",)),
    "no mask": (("scores.masked_fill(hidden, -math.inf)", "scores"), ("attn.mask",)),
    "no scale": ((" / math.sqrt(self.size)", ""), ("attn.scale",)),
    "the output projection transposed": (
        ("self.o_proj(mixed)", "F.linear(mixed, self.o_proj.weight.T, self.o_proj.bias)"), ("attn.c_proj",),
    ),
    "heads merged without a transpose": (
        ("(weights @ v).transpose(1, 2).flatten(2)", "(weights @ v).reshape(x.shape)"), ("attn.merge",),
    ),
    "the values are the keys": (("(weights @ v)", "(weights @ k)"), ("attn.mix", "attn.split", "attn.qkv")),
    "no skip connection around the MLP": (("return x + self.mlp", "return self.mlp"), ("residual.mlp", "block")),
    "the final norm is missing": (("self.head(self.final_norm(x))", "self.head(x)"), ("ln_f",)),
    "the last block is skipped": (("in self.blocks:", "in self.blocks[:-1]:"), ("blocks",)),
    "the logits are scaled": (("return self.head(", "return 2 * self.head("), ("head",)),
}  # fmt: skip


def write(folder: Path, changes: Changes) -> str:
    """Write the GPT with these changes, and return its name for --subject."""
    text = GPT
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    (folder / "mine.py").write_text(text)
    return f"{folder}/mine.py:GPT"


def declare(folder: Path, tables: tuple[str, ...]) -> tuple[Deviation, ...]:
    """Write the declarations beside it, and return them as read."""
    path = folder / "mine.deviations.toml"
    path.write_text("\n".join(f"[[deviation]]\n{table}\nreason = 'on purpose'\n" for table in tables))
    return read(path)
