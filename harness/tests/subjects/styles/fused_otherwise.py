"""Fused projections that are none of GPT-2's: keys first, head by head, or a head's numbers interleaved."""

from torch import nn
from torch.nn import functional as F


class Mixer(nn.Module):
    def __init__(self, dim, heads, order):
        super().__init__()
        self.heads, self.order = heads, order
        self.qkv = nn.Linear(dim, 3 * dim)
        self.o = nn.Linear(dim, dim)

    def forward(self, x):
        b, t, c = x.shape
        h, d = self.heads, c // self.heads
        y = self.qkv(x)
        if self.order == "keys first":
            k, q, v = (part.view(b, t, h, d) for part in y.split(c, -1))
        elif self.order == "head by head":
            q, k, v = y.view(b, t, h, 3, d).unbind(3)
        else:  # (d k h), as in an einops pattern that is often copied
            q, k, v = y.view(b, t, d, 3, h).permute(3, 0, 1, 4, 2).unbind(0)
        mixed = F.scaled_dot_product_attention(*(z.transpose(1, 2) for z in (q, k, v)), is_causal=True)
        return self.o(mixed.transpose(1, 2).reshape(b, t, c))


class Fused(nn.Module):
    order = "keys first"

    def __init__(self, cfg):
        super().__init__()
        d, v = cfg["hidden_size"], cfg["vocab_size"]
        self.embed, self.pos = nn.Embedding(v, d), nn.Embedding(cfg["max_position_embeddings"], d)
        self.blocks = nn.ModuleList()
        for _ in range(cfg["num_hidden_layers"]):
            mixer = Mixer(d, cfg["num_attention_heads"], self.order)
            mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU("tanh"), nn.Linear(4 * d, d))
            self.blocks.append(nn.ModuleDict({"n1": nn.LayerNorm(d), "mix": mixer, "n2": nn.LayerNorm(d), "mlp": mlp}))
        self.n = nn.LayerNorm(d)

    def forward(self, tokens):
        x = self.embed(tokens) + self.pos.weight[: tokens.size(1)]
        for block in self.blocks:
            x = x + block["mix"](block["n1"](x))
            x = x + block["mlp"](block["n2"](x))
        return self.n(x) @ self.embed.weight.T


class HeadByHead(Fused):
    order = "head by head"


class Interleaved(Fused):
    order = "interleaved"
