"""The specimen: a complete, correct GPT-2 in one file, each operation on its own line, so that faults can change it.

It imports neither the harness nor `gpt`, as a user's file would not. `catalogue.toml` changes its text.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F


@dataclass
class Config:
    """The sizes of a GPT-2 and its options."""

    vocab_size: int = 50257
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.1
    bias: bool = True
    tied: bool = True
    layer_norm_epsilon: float = 1e-5


class Cache:
    """The keys and values of the tokens so far, (B, H, T, D) for each layer."""

    def __init__(self, config, batch_size, like):
        shape = (batch_size, config.n_head, 0, config.n_embd // config.n_head)
        self.keys = [like.new_empty(shape) for _ in range(config.n_layer)]
        self.values = [like.new_empty(shape) for _ in range(config.n_layer)]

    @property
    def length(self):
        """The number of tokens in the cache."""
        return self.keys[0].size(2)

    def append(self, layer, k, v):
        """Append keys and values of new tokens to a layer's, and return all of them."""
        self.keys[layer] = torch.cat([self.keys[layer], k], dim=2)
        self.values[layer] = torch.cat([self.values[layer], v], dim=2)
        return self.keys[layer], self.values[layer]


class LayerNorm(nn.Module):
    """Normalise to mean 0 and variance 1 over the channels, then apply gain and bias."""

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.bias else None
        self.epsilon = config.layer_norm_epsilon

    def forward(self, x):
        """(B, T, C) -> (B, T, C)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class Attention(nn.Module):
    """Causal self-attention, all heads at once."""

    def __init__(self, config, layer):
        super().__init__()
        self.config = config
        self.layer = layer
        self.n_head = config.n_head
        self.head_width = config.n_embd // config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.attn_dropout = nn.Dropout(config.dropout)
        self.resid_dropout = nn.Dropout(config.dropout)
        mask = torch.ones(config.block_size, config.block_size, dtype=torch.bool).tril()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x, cache=None, attention_mask=None):
        """(B, T, C) -> (B, T, C)."""
        B, T, C = x.shape
        qkv = self.c_attn(x)  # (B, T, C) -> (B, T, 3C)
        q, k, v = qkv.split(C, dim=2)
        q = q.view(B, T, self.n_head, self.head_width).transpose(1, 2)  # (B, T, C) -> (B, H, T, D)
        k = k.view(B, T, self.n_head, self.head_width).transpose(1, 2)
        v = v.view(B, T, self.n_head, self.head_width).transpose(1, 2)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        S = k.size(2)  # cached keys and new ones
        scores = q @ k.transpose(-2, -1)  # (B, H, T, D) @ (B, H, D, S) -> (B, H, T, S)
        scores = scores / math.sqrt(self.head_width)
        visible = self.mask[S - T : S, :S]
        if attention_mask is not None:
            padding = attention_mask[:, None, None, :].bool()  # 1 is a token, 0 is padding
            visible = visible & (padding | torch.eye(T, dtype=torch.bool, device=x.device))
        scores = scores.masked_fill(~visible, -math.inf)
        weights = scores.softmax(dim=-1)
        weights = self.attn_dropout(weights)
        mixed = weights @ v  # (B, H, T, S) @ (B, H, S, D) -> (B, H, T, D)
        merged = mixed.transpose(1, 2).reshape(B, T, C)  # (B, H, T, D) -> (B, T, C)
        projected = self.c_proj(merged)
        return self.resid_dropout(projected)


class MLP(nn.Module):
    """Two linear layers, four times as wide between them, with a GELU."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        """(B, T, C) -> (B, T, C)."""
        hidden = self.c_fc(x)  # (B, T, C) -> (B, T, 4C)
        hidden = F.gelu(hidden, approximate="tanh")
        projected = self.c_proj(hidden)
        return self.dropout(projected)


class Block(nn.Module):
    """Attention, then the MLP, each on a normed copy of the residual stream and added to it."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer = layer
        self.ln_1 = LayerNorm(config)
        self.attn = Attention(config, layer)
        self.ln_2 = LayerNorm(config)
        self.mlp = MLP(config)

    def forward(self, x, cache=None, attention_mask=None):
        """(B, T, C) -> (B, T, C)."""
        normed = self.ln_1(x)
        attended = self.attn(normed, cache, attention_mask)
        x = x + attended
        normed = self.ln_2(x)
        transformed = self.mlp(normed)
        return x + transformed


class GPT(nn.Module):
    """GPT-2 with the names of the published checkpoint, Conv1D weights transposed."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList([Block(config, layer) for layer in range(config.n_layer)])
        self.ln_f = LayerNorm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.wte.weight
        self.initialise()

    def initialise(self):
        """Draw weights from N(0, 0.02²), residual projections smaller by sqrt(2L); set biases to 0."""
        std = 0.02
        residual_std = std / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, mean=0.0, std=residual_std)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, mean=0.0, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, idx, targets=None, *, cache=None, attention_mask=None):
        """Return logits (B, T, V) of ids (B, T), and the mean loss if there are targets; -100 is ignored."""
        B, T = idx.shape
        past = 0 if cache is None else cache.length
        if past + T > self.config.block_size:
            raise ValueError(f"{past + T} tokens; block_size is {self.config.block_size}")
        positions = torch.arange(past, past + T, device=idx.device)
        tokens_embedded = self.wte(idx)  # (B, T) -> (B, T, C)
        positions_embedded = self.wpe(positions)  # (T) -> (T, C)
        x = tokens_embedded + positions_embedded
        x = self.drop(x)
        for block in self.h:
            x = block(x, cache, attention_mask)
        x = self.ln_f(x)
        logits = self.lm_head(x)  # (B, T, C) -> (B, T, V)
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.view(B * T, -1), targets.view(B * T), ignore_index=-100)
        return logits, loss

    def new_cache(self, batch_size):
        """Return an empty cache for `batch_size` sequences."""
        return Cache(self.config, batch_size, like=self.wte.weight)

    def crop_block_size(self, block_size):
        """Shorten the context."""
        self.config.block_size = block_size
        self.wpe.weight = nn.Parameter(self.wpe.weight[:block_size].detach().clone())
        for block in self.h:
            block.attn.mask = block.attn.mask[:block_size, :block_size]

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, *, temperature=1.0, top_k=None, top_p=None, seed=None, use_cache=True):
        """Continue (B, T) to (B, T + max_new_tokens). Temperature 0 takes the likeliest token."""
        was_training = self.training
        self.eval()
        generator = None if seed is None else torch.Generator(idx.device).manual_seed(seed)
        cache = self.new_cache(idx.size(0))
        for _ in range(max_new_tokens):
            window = idx[:, -self.config.block_size :]
            if use_cache and idx.size(1) <= self.config.block_size:
                logits, _ = self(idx[:, cache.length :], cache=cache)
            else:  # past the context every position changes: the cache is useless
                logits, _ = self(window)
            last = logits[:, -1]
            if temperature == 0:
                chosen = last.argmax(dim=-1, keepdim=True)
            else:
                chosen = sample(last, temperature, top_k, top_p, generator)
            idx = torch.cat([idx, chosen], dim=1)
        self.train(was_training)
        return idx

    @classmethod
    def from_pretrained(cls, directory):
        """Load the model in a Hugging Face directory (config.json, model.safetensors)."""
        given = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
        config = read_config(given)
        tensors = load_file(Path(directory) / "model.safetensors")
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        tensors = {
            name: tensor for name, tensor in tensors.items() if not name.endswith((".attn.bias", ".masked_bias"))
        }
        layers = len({name.split(".")[1] for name in tensors if name.startswith("h.")})
        if layers != config.n_layer:
            raise ValueError(f"config.json says {config.n_layer} layers, the file has {layers}")
        model = cls(config)
        own = dict(model.named_parameters())
        if config.tied:
            head = tensors.pop("lm_head.weight", None)
            if head is not None and not torch.equal(head, tensors["wte.weight"]):
                raise ValueError("lm_head.weight of the file is not wte.weight, and this model ties them")
        if own.keys() != tensors.keys():
            raise ValueError(f"names that are on one side only: {sorted(own.keys() ^ tensors.keys())}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor = tensor.T if is_conv1d(name) else tensor
                if own[name].shape != tensor.shape:
                    raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}")
                own[name].copy_(tensor)
        return model.eval()

    def save_pretrained(self, directory):
        """Write a directory that Hugging Face's GPT2LMHeadModel reads."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        config = write_config(self.config)
        (Path(directory) / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        tensors = {}
        for name, parameter in self.named_parameters():
            tensor = parameter.detach().T if is_conv1d(name) else parameter.detach()
            published = name if name.startswith("lm_head") else f"transformer.{name}"
            tensors[published] = tensor.contiguous()
        save_file(tensors, Path(directory) / "model.safetensors", metadata={"format": "pt"})


def sample(logits, temperature, top_k, top_p, generator):
    """Draw one token a row, with top-k and top-p: (B, V) -> (B, 1)."""
    logits = logits / temperature
    if top_k is not None:
        k = min(top_k, logits.size(-1))
        kth = logits.topk(k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    probabilities = logits.softmax(dim=-1)
    if top_p is not None:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        ordered = ordered.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return torch.multinomial(probabilities, num_samples=1, generator=generator)


def is_conv1d(name):
    """Return True for weights that the published checkpoint stores as (in, out), and nn.Linear as (out, in)."""
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def read_config(given):
    """Return Hugging Face's config.json as a Config; raise ValueError for options that this model does not have."""
    wanted = {
        "model_type": ["gpt2"],
        "activation_function": ["gelu_new", "gelu_pytorch_tanh"],
        "scale_attn_weights": [True],
        "scale_attn_by_inverse_layer_idx": [False],
        "n_inner": [None, 4 * given["n_embd"]],
    }
    for key, accepted in wanted.items():
        if given.get(key, accepted[0]) not in accepted:
            raise ValueError(f"{key} is {given[key]!r}, expected {accepted[0]!r}")
    return Config(
        vocab_size=given["vocab_size"],
        block_size=given["n_positions"],
        n_layer=given["n_layer"],
        n_head=given["n_head"],
        n_embd=given["n_embd"],
        dropout=given.get("resid_pdrop", 0.1),
        tied=given.get("tie_word_embeddings", True),
        layer_norm_epsilon=given.get("layer_norm_epsilon", 1e-5),
    )


def write_config(config):
    """Return a Config as Hugging Face's config.json."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "tie_word_embeddings": config.tied,
        "layer_norm_epsilon": config.layer_norm_epsilon,
    }
