"""The names that people give to the settings of a GPT, and the quantity that each name means."""

from __future__ import annotations

from collections.abc import Iterable

# One row a quantity: the names it has in nanoGPT, minGPT, Hugging Face, LLMs-from-scratch, x-transformers,
# TransformerLens and others. Compared without case and underscores: vocabSize, VOCAB_SIZE and vocab_size are one name.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "vocab_size": (
        "vocab_size", "n_vocab", "num_tokens", "d_vocab", "padded_vocab_size", "vocab", "vocabulary_size", "n_tokens",
        "num_embeddings", "vocab_len", "ntoken", "ntokens", "num_vocab", "vocabulary",
    ),
    "context": (
        "block_size", "n_positions", "n_ctx", "context_length", "max_seq_len", "context", "max_position_embeddings",
        "sequence_length", "seq_len", "max_len", "max_length", "seq_length", "context_len", "context_size", "window",
        "ctx_len", "max_sequence_length", "max_context", "max_context_length", "max_seq_length", "window_size",
        "max_positions", "n_seq", "ctx", "max_context_len", "num_positions", "max_T", "context_window",
    ),
    "layers": (
        "n_layer", "n_layers", "num_layers", "layers", "depth", "num_hidden_layers", "n_blocks", "num_blocks", "blocks",
        "num_decoder_layers", "layer_count", "nlayers", "num_layer", "n_block",
    ),
    "heads": (
        "n_head", "n_heads", "num_heads", "heads", "num_attention_heads", "nhead", "nheads", "num_head", "head_count",
    ),
    "width": (
        "n_embd", "d_model", "emb_dim", "embed_dim", "dim", "n_embed", "width", "embedding_dim", "embedding_size",
        "model_dim", "embd_dim", "emb_size", "embed_size", "d_embed", "d_embd", "n_emb", "channels", "n_state", "ninp",
        "residual_dim", "d_emb", "model_width", "dmodel",
    ),
    "head_width": ("head_size", "d_head", "head_dim", "dim_head", "d_k", "head_width", "d_v"),
    "feed_forward_width": (
        "n_inner", "d_mlp", "d_ff", "ff_dim", "ffn_dim", "intermediate_size", "dim_feedforward", "mlp_dim",
        "ffn_hidden", "mlp_hidden", "ff_hidden", "d_ffn", "ffn_size", "ff_size", "n_ff", "d_inner", "mlp_width",
        "ff_width", "feed_forward_dim", "ffn_hidden_size", "mlp_hidden_dim", "ffn_hidden_dim", "mlp_size",
        "d_feedforward", "feed_forward_width", "feed_forward_size",
    ),
    "feed_forward_factor": (
        "mlp_ratio", "ff_mult", "expansion", "expansion_factor", "mlp_mult", "ffn_mult", "ff_ratio", "mlp_expansion",
        "ff_expansion", "ffn_ratio", "ff_factor", "widening_factor", "mlp_factor", "forward_expansion", "mlp_scale",
        "feed_forward_factor", "feed_forward_mult",
    ),
    "epsilon": (
        "layer_norm_eps", "eps", "layer_norm_epsilon", "norm_eps", "ln_eps", "layernorm_eps", "layernorm_epsilon",
    ),
    "dropout": (
        "dropout", "drop_rate", "dropout_rate", "dropout_p", "resid_pdrop", "embd_pdrop", "attn_pdrop", "attn_dropout",
        "ff_dropout", "resid_dropout", "emb_dropout", "p_drop", "dropout_prob", "p_dropout", "drop", "embed_dropout",
        "attention_dropout", "residual_dropout", "mlp_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob",
        "embd_dropout", "embedding_dropout", "drop_p", "pdrop", "attn_drop", "resid_drop", "emb_drop",
    ),
    "bias": (
        "bias", "qkv_bias", "use_bias", "attn_bias", "mlp_bias", "linear_bias", "add_bias", "proj_bias", "ln_bias",
    ),
    "tied": (
        "tied", "tie_weights", "tie_word_embeddings", "weight_tying", "tie_embeddings", "tie_embedding", "tie",
        "share_embeddings", "tied_embeddings",
    ),
    "attention": (
        "attention", "attention_kind", "attn_implementation", "attn_impl", "attention_impl", "attention_type",
    ),
    "init": ("init", "init_recipe", "initialisation", "initialization", "init_scheme"),
    "seed": ("seed",),
    "device": ("device",),
}  # fmt: skip

# The model's width, unless another setting is that: then the feed-forward layer's width.
WIDTH_OR_FEED_FORWARD_WIDTH = (
    "hidden_size",
    "hidden_dim",
    "hidden",
    "d_hidden",
    "n_hidden",
    "dim_hidden",
    "hidden_width",
)

# Quantities that are abilities: claimed only where the subject names them.
CHOICES = ("tied", "attention", "init", "seed", "device")
SIZES = ("vocab_size", "context", "layers", "heads", "width")


def normalised(name: str) -> str:
    """Return a name in lower case and without underscores; of a setting inside another, the last word."""
    return name.rsplit(".", 1)[-1].lower().replace("_", "")


QUANTITIES = {normalised(name): quantity for quantity, names in SYNONYMS.items() for name in names}
# Beginnings that say whose setting it is, as in G_N_EMBD, GPT_BLOCK_SIZE or default_n_layer.
OWNERS = ("g", "gpt", "lm", "model", "transformer", "config", "cfg", "default", "my")


def without_owner(name: str) -> str:
    """Return a setting's name without the word that says whose it is, unless the whole name is known."""
    last = name.rsplit(".", 1)[-1]
    owner, _, rest = last.lower().partition("_")
    return rest if owner in OWNERS and rest and normalised(last) not in QUANTITIES else last


def quantity_of(name: str, beside: Iterable[str]) -> str | None:
    """Return the quantity (a key of SYNONYMS) that a setting means, given the names beside it; None if unknown."""
    own = normalised(without_owner(name))
    if own in map(normalised, WIDTH_OR_FEED_FORWARD_WIDTH):
        others = {QUANTITIES.get(normalised(without_owner(other))) for other in beside}
        return "feed_forward_width" if "width" in others else "width"
    return QUANTITIES.get(own)


def names_sizes(names: Iterable[str]) -> bool:
    """Return True if at least three of the five sizes are among the settings."""
    settings = list(names)
    found = {quantity_of(name, settings) for name in settings}
    return sum(quantity in found for quantity in SIZES) >= 3
