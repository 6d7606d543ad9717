"""A right GPT-2 under constructors of many styles, as text: each is written to a file and read from it."""
# ruff: noqa: E501 - each style is a program on one line

PARTS = """
import math

import torch
from torch import nn
from torch.nn import functional as F


class Layer(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.h, self.d = h, d
        self.one, self.two = nn.LayerNorm(d), nn.LayerNorm(d)
        self.mix, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.h, c // self.h).transpose(1, 2) for y in self.mix(self.one(x)).split(self.d, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.two(x)), approximate="tanh"))


class Base(nn.Module):
    def make(self, v, t, d, h, n):
        assert d % h == 0, "the heads must divide the width"
        self.tokens, self.places = nn.Embedding(v, d), nn.Embedding(t, d)
        self.layers, self.last = nn.ModuleList(Layer(d, h) for _ in range(n)), nn.LayerNorm(d)

    def forward(self, ids):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.last(x), self.tokens.weight)

"""
INIT = "class GPT(Base):\n    def __init__(self{}):\n        super().__init__()\n        self.make({})\n"

STYLES = {
    "no word is known": INIT.format(
        ", rows=50257, slots=1024, units=768, pieces=12, storeys=12", "rows, slots, units, pieces, storeys"
    ),
    "letters without defaults": INIT.format(", V, T, L, H, C", "V, T, C, H, L"),
    "positions only": INIT.format(
        ", vocab_size, n_embd, n_head, /, n_layer=12, block_size=1024",
        "vocab_size, block_size, n_embd, n_head, n_layer",
    ),
    "defaults that do not divide": INIT.format(
        ", vocab_size=100, block_size=64, units=35, pieces=7, n_layer=2",
        "vocab_size, block_size, units, pieces, n_layer",
    ),
    "the same default twice": INIT.format(
        ", rows=64, slots=64, units=64, pieces=4, storeys=4", "rows, slots, units, pieces, storeys"
    ),
    "keyword only": INIT.format(
        ", *, vocab_size=5, context=5, units=8, heads=2, layers=2", "vocab_size, context, units, heads, layers"
    ),
    "kwargs with get": INIT.format(
        ", **kw", 'kw.get("vocab", 5), kw.get("ctx", 6), kw.pop("units", 8), kw.get("heads", 2), kw["layers"]'
    ),
    "a class attribute": "class Cfg:\n    rows = 90\n    ctx = 40\n    units = 32\n    heads = 4\n    depth = 2\n\n"
    + INIT.format(", cfg=Cfg", "cfg.rows, cfg.ctx, cfg.units, cfg.heads, cfg.depth"),
    "a global class": "class Cfg:\n    vocab = 90\n    ctx = 40\n    units = 32\n    heads = 4\n    depth = 2\n\n"
    + INIT.format("", "Cfg.vocab, Cfg.ctx, Cfg.units, Cfg.heads, Cfg.depth"),
    "a global dict": "C = {'vocab': 90, 'ctx': 40, 'units': 32, 'heads': 4, 'depth': 2}\n\n"
    + INIT.format("", "C['vocab'], C['ctx'], C['units'], C['heads'], C['depth']"),
    "a global namespace": "from types import SimpleNamespace\nC = SimpleNamespace(vocab=90, ctx=40, n_embd=32, heads=4, depth=2)\n\n"
    + INIT.format("", "C.vocab, C.ctx, C.n_embd, C.heads, C.depth"),
    "constants": "ROWS = 90\nSLOTS = 40\nUNITS = 8 * 4\nPIECES, STOREYS = 4, 2\nTILE = 16\nSTEPS = 5000\n\n"
    + INIT.format("", "ROWS, SLOTS, UNITS, PIECES, STOREYS"),
    "an object, and constants that begin alike": "G_BLOCK_SIZE = 40\nG_N_EMBD = 32\nG_N_LAYERS = 2\nG_N_HEAD = 4\n\nclass State:\n    def __init__(self, text):\n        self.vocab_size = len(set(text))\n\n"
    + INIT.format(", state: State", "state.vocab_size, G_BLOCK_SIZE, G_N_EMBD, G_N_HEAD, G_N_LAYERS"),
    "constants in defaults": "n_embd = 32\nn_head = 4\nctx = 40\nsize_of_head = n_embd // n_head\n\n"
    + INIT.format(
        ", vocab_size=90, width=n_embd, heads=n_head, n_layer=2",
        "vocab_size, ctx, size_of_head * heads, heads, n_layer",
    ),
    "constants beside a config": "from dataclasses import dataclass\nMAX_LEN = 40\nH = 4\n@dataclass\nclass Cfg:\n    vocab_size: int = 90\n    n_embd: int = 32\n    n_layer: int = 2\n\n"
    + INIT.format(", cfg: Cfg", "cfg.vocab_size, MAX_LEN, cfg.n_embd, H, cfg.n_layer"),
    "nested dataclasses": "from dataclasses import dataclass, field\n@dataclass\nclass Sizes:\n    units: int = 32\n    heads: int = 4\n    layers: int = 2\n@dataclass\nclass Cfg:\n    vocab_size: int = 90\n    block_size: int = 40\n    model: Sizes = field(default_factory=Sizes)\n\n"
    + INIT.format(", cfg: Cfg", "cfg.vocab_size, cfg.block_size, cfg.model.units, cfg.model.heads, cfg.model.layers"),
    "nested without defaults": "from dataclasses import dataclass\n@dataclass\nclass Sizes:\n    n_embd: int\n    n_head: int\n    n_layer: int\n@dataclass\nclass Cfg:\n    vocab_size: int\n    block_size: int\n    model: Sizes\n\n"
    + INIT.format(
        ", cfg: Cfg", "cfg.vocab_size, cfg.block_size, cfg.model.n_embd, cfg.model.n_head, cfg.model.n_layer"
    ),
    "a nested dict under any name": "SETUP = {'opt': {'lr': 1e-3, 'batch': 12}, 'net': {'vocab': 90, 'ctx': 40, 'units': 32, 'heads': 4, 'depth': 2}}\n\n"
    + INIT.format(", c", "*(c['net'][k] for k in ('vocab', 'ctx', 'units', 'heads', 'depth'))"),
    "a nested config that is nowhere": INIT.format(
        ", cfg", "cfg.data.vocab_size, cfg.data.block_size, cfg.model.n_embd, cfg.model.n_head, cfg.model.n_layer"
    ),
    "an unknown word of a config that is nowhere": INIT.format(
        ", config", "config.vocab_size, config.block_size, config.units, config.n_head, config.n_layer"
    ),
    "an unknown word of a dict that is nowhere": INIT.format(
        ", cfg", "cfg['vocab_size'], cfg['block_size'], cfg['units'], cfg['n_head'], cfg['n_layer']"
    ),
    "a tokenizer": INIT.format(
        ", tokenizer, n_embd=32, n_head=4, n_layer=2, block_size=40",
        "len(tokenizer), block_size, n_embd, n_head, n_layer",
    ),
    "a config and a tokenizer": INIT.format(
        ", cfg, tok", "tok.n_vocab, cfg.block_size, cfg.n_embd, cfg.n_head, cfg.n_layer"
    ),
    "a parser of arguments": "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--vocab-size', type=int, default=90)\nparser.add_argument('--ctx', type=int, default=40)\nparser.add_argument('--units', type=int, default=32)\nparser.add_argument('--heads', type=int, default=4)\nparser.add_argument('--depth', type=int, default=2)\nargs = parser.parse_args()\n\n"
    + INIT.format("", "args.vocab_size, args.ctx, args.units, args.heads, args.depth"),
    "a parser's object as the config": "import argparse\ndef parse():\n    p = argparse.ArgumentParser()\n    p.add_argument('--data', required=True)\n    return p.parse_args()\nargs = parse()\n\n"
    + INIT.format(", args", "args.vocab_size, args.block_size, args.n_embd, args.n_head, args.n_layer"),
    "a required factor": INIT.format(
        ", vocab_size, block_size, n_embd, n_head, n_layer, widen", "vocab_size, block_size, n_embd, n_head, n_layer"
    )
    + "        for layer in self.layers:\n            layer.up, layer.down = nn.Linear(n_embd, widen * n_embd), nn.Linear(widen * n_embd, n_embd)\n",
    "another default factor": INIT.format(
        ", vocab_size, block_size, n_embd, n_head, n_layer, widen=2", "vocab_size, block_size, n_embd, n_head, n_layer"
    )
    + "        for layer in self.layers:\n            layer.up, layer.down = nn.Linear(n_embd, widen * n_embd), nn.Linear(widen * n_embd, n_embd)\n",
    "only the heads have no word": INIT.format(
        ", vocab_size=90, block_size=40, n_embd=32, pieces=8, n_layer=2",
        "vocab_size, block_size, n_embd, pieces, n_layer",
    ),
    "flags and functions": INIT.format(
        ", vocab_size, block_size, n_embd, n_head, n_layer, fast, norm=nn.LayerNorm, act='gelu'",
        "vocab_size, block_size, n_embd, n_head, n_layer",
    )
    + "        if fast:\n            self.last = nn.Identity()\n",
    "a factory": "def small(units=32, **more):\n    made = Base()\n    made.make(more.get('rows', 90), more.get('ctx', 40), units, more.get('heads', 4), more.get('depth', 2))\n    return made\nGPT = small\n",
    "a config passed on": "from dataclasses import dataclass\n@dataclass\nclass Cfg:\n    rows: int = 90\n    ctx: int = 40\n    units: int = 32\n    heads: int = 4\n    depth: int = 2\n\n"
    + INIT.format(", **kw", "*vars(Cfg(**kw)).values()"),
    "a builder": INIT.format(", a, b, c, d, e", "b, e, a, d, c")
    + "def build(size):\n    return GPT(size.width, size.vocab_size, size.layers, size.heads, size.context)\n",
}
NAMES = {"a builder": "build"}
