"""One right GPT-2 whose parameters have several names, and tables that are stored as a product needs them."""

import torch
from torch import nn
from torch.nn import functional as F

from harness.tests.subjects.styles.calls import Layer


class Table(nn.Module):
    def __init__(self, rows, width):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(rows, width) * 0.02)

    def forward(self, ids):
        return self.rows[ids]


class Named(nn.Module):
    """The frame: `make` gives the tables their names, `embed` and `unembed` use them."""

    def __init__(self, vocab_size, n_ctx, n_layer, n_head, n_embd):
        super().__init__()
        self.blocks = nn.ModuleList(Layer(n_embd, n_head) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd)
        self.wpe = nn.Embedding(n_ctx, n_embd)
        self.make(vocab_size, n_embd)

    def forward(self, ids):
        x = self.embed(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.ln_f(x))


class HeadFirst(Named):
    """The head's name is the first one: a parameter of the model itself comes before those of its parts."""

    def make(self, rows, width):
        self.words = Table(rows, width)
        self.lm_head = self.words.rows

    def embed(self, ids):
        return self.words(ids)

    def unembed(self, x):
        return x @ self.lm_head.T


class HeadOnly(Named):
    """One table, under the name of the head."""

    def make(self, rows, width):
        self.lm_head = nn.Linear(width, rows, bias=False)

    def embed(self, ids):
        return F.embedding(ids, self.lm_head.weight)

    def unembed(self, x):
        return self.lm_head(x)


class HeadBeforeEmbedding(Named):
    def make(self, rows, width):
        self.output = nn.Linear(width, rows, bias=False)
        self.wte = nn.Embedding(rows, width)
        self.output.weight = self.wte.weight

    def embed(self, ids):
        return self.wte(ids)

    def unembed(self, x):
        return self.output(x)


class UntiedTwice(Named):
    """Deviates: an untied head, which has two names itself."""

    def make(self, rows, width):
        self.words = nn.Embedding(rows, width)
        self.unembedding = self.last = nn.Linear(width, rows, bias=False)

    def embed(self, ids):
        return self.words(ids)

    def unembed(self, x):
        return self.last(x)


class WidthFirst(Named):
    """(width, vocabulary), with one-hot ids on the way in, and as it is on the way out."""

    def make(self, rows, width):
        self.table = nn.Parameter(torch.randn(width, rows) * 0.02)

    def embed(self, ids):
        return F.one_hot(ids, self.table.shape[1]).to(self.table.dtype) @ self.table.T

    def unembed(self, x):
        return x @ self.table


class PaddedWidthFirst(WidthFirst):
    def make(self, rows, width):
        super().make(rows // 64 * 64 + 64, width)


class Twice(nn.Module):
    """Everything registered twice: by name, and in the Sequential that is called."""

    def __init__(self, vocab_size, n_ctx, n_layer, n_head, n_embd):
        super().__init__()
        self.tokens = Table(vocab_size, n_embd)
        self.places = nn.Parameter(torch.randn(n_ctx, n_embd) * 0.02)
        self.blocks = nn.ModuleList(Layer(n_embd, n_head) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd)
        self.steps = nn.Sequential(*self.blocks, self.ln_f)
        self.parts = nn.ModuleDict({"embedding": self.tokens, "steps": self.steps})

    def forward(self, ids):
        return F.linear(self.steps(self.tokens(ids) + self.places[: ids.shape[1]]), self.tokens.rows)


class Counted(nn.Module):
    """All parts in one Sequential, each named by its kind and its number."""

    def __init__(self, vocab_size, n_ctx, n_layer, n_head, n_embd):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, n_embd), nn.Embedding(n_ctx, n_embd)
        self.trunk = nn.Sequential()
        for number in range(n_layer):
            self.trunk.add_module(f"mix_{number}", Residual(nn.LayerNorm(n_embd), Mix(n_embd, n_head)))
            parts = nn.LayerNorm(n_embd), nn.Linear(n_embd, 4 * n_embd), nn.GELU("tanh"), nn.Linear(4 * n_embd, n_embd)
            self.trunk.add_module(f"mlp_{number}", Residual(*parts))
        self.ln_f = nn.LayerNorm(n_embd)

    def forward(self, ids):
        x = self.trunk(self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device)))
        return F.linear(self.ln_f(x), self.wte.weight)


class Trunk(nn.Module):
    """The frame of the three below: `make` gives the layers their names, `run` calls them."""

    def __init__(self, vocab_size, n_ctx, n_layer, n_head, n_embd):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, n_embd), nn.Embedding(n_ctx, n_embd)
        self.make(n_layer, n_head, n_embd)
        self.ln_f = nn.LayerNorm(n_embd)

    def forward(self, ids):
        x = self.run(self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device)))
        return F.linear(self.ln_f(x), self.wte.weight)


class Interleaved(Trunk):
    """Attention has the even numbers, feed-forward the odd ones, and a norm has the same name in both."""

    def make(self, layers, heads, width):
        self.net = nn.Sequential(*(part for _ in range(layers) for part in pair(heads, width)))

    def run(self, x):
        return self.net(x)


class Letters(Trunk):
    """No number at all."""

    def make(self, layers, heads, width):
        self.by_letter = nn.ModuleDict({chr(ord("a") + n): pair(heads, width) for n in range(layers)})

    def run(self, x):
        for layer in self.by_letter.values():
            x = layer(x)
        return x


class LeadingZeros(Trunk):
    def make(self, layers, heads, width):
        self.by_name = nn.ModuleDict({f"layer_{n:03d}": Layer(width, heads) for n in range(layers)})

    def run(self, x):
        for layer in self.by_name.values():
            x = layer(x)
        return x


class Stages(Trunk):
    """Three stages of layers."""

    def make(self, layers, heads, width):
        of_one = layers // 3
        self.stages = nn.ModuleList(nn.Sequential(*(Layer(width, heads) for _ in range(of_one))) for _ in range(3))

    def run(self, x):
        for stage in self.stages:
            x = stage(x)
        return x


def pair(heads, width):
    linear = nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
    mix = Residual(nn.LayerNorm(width), Mix(width, heads))
    return nn.Sequential(mix, Residual(nn.LayerNorm(width), *linear))


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Mix(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
