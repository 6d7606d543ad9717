"""torch's own encoder layers with a causal mask: nothing written by hand but the frame."""

import torch
from torch import nn
from torch.nn import functional as F


def tanh_gelu(x):
    return F.gelu(x, approximate="tanh")


class EncoderGPT(nn.Module):
    def __init__(
        self, vocab_size, d_model=768, nhead=12, num_layers=12, dim_feedforward=3072, max_len=1024, dropout=0.1
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.position = nn.Parameter(torch.randn(1, max_len, d_model) * 0.02)
        layer = nn.TransformerEncoderLayer(
            d_model, nhead, dim_feedforward, dropout, tanh_gelu, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(d_model), enable_nested_tensor=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        length = x.size(1)
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        hidden = self.drop(self.embedding(x) + self.position[:, :length])
        return F.linear(self.encoder(hidden, mask=future), self.embedding.weight)
