"""The weight map read off a model's names and shapes: the styles that people write, by one table of synonyms."""

from __future__ import annotations

import re

from torch import nn

from harness.size import Size
from harness.weights import Row, WeightMap, published_shapes

# Patterns of own names (below the model, prefixes stripped), and the published component they stand for.
MODEL = {
    r"wte|tok_emb|token_emb(edding)?s?|tok_embeddings|token_embedding_table|embed|embed_tokens": "wte",
    r"wpe|pos_emb|pos_embed|position_emb(edding)?s?|pos_embedding|position_embedding_table|positional_embedding": "wpe",
    r"ln_f|final_norm|norm_f|ln_final|norm|final_layer_norm|layer_norm": "ln_f",
    r"lm_head|out_head|head|output|unembed": "lm_head",
}
BLOCKS = r"(h|blocks|layers|trf_blocks|transformer_blocks|block)\.(?P<layer>\d+)\.(?P<rest>.+)"
ATTENTION = "(attn|att|sa|self_attn|attention|mha)"
FEED_FORWARD = "(mlp|ff|ffn|ffwd|feed_forward)"
BLOCK = {
    r"(ln_?1|norm_?1|attn_norm|ln_attn|attention_norm|input_layernorm)": "ln_1",
    r"(ln_?2|norm_?2|mlp_norm|ffn_norm|ln_mlp|post_attention_layernorm)": "ln_2",
    rf"{ATTENTION}\.(c_attn|qkv|qkv_proj|in_proj|W_qkv|Wqkv)": "attn.c_attn",
    rf"{ATTENTION}\.heads\.(?P<head>\d+)\.(?P<part>query|key|value|q|k|v)": "attn.c_attn",
    rf"{ATTENTION}\.(?P<part>W_query|W_key|W_value|query|key|value|w?_?[qkvQKV](_proj)?|W_?[qkvQKV])": "attn.c_attn",
    rf"{ATTENTION}\.(c_proj|out_proj|proj|o_proj|W_?[oO]|out|output)": "attn.c_proj",
    rf"{FEED_FORWARD}\.(c_fc|fc_?1|up|up_proj|fc_in|(layers|net)\.0|0|linear_?1|w1)": "mlp.c_fc",
    rf"{FEED_FORWARD}\.(c_proj|fc_?2|down|down_proj|fc_out|(layers|net)\.2|2|linear_?2|w2)": "mlp.c_proj",
}
LEAVES = {r"weight|scale|gamma|g|w": "weight", r"bias|shift|beta|b": "bias"}
PREFIXES = ("_orig_mod.", "module.", "transformer.", "model.", "gpt.", "decoder.")


def map_by_names(module: nn.Module, size: Size) -> WeightMap:
    """The weight map of `module`. Raises ValueError naming what stands on either side without a partner."""
    shapes = published_shapes(size)
    rows, strange = [], []
    for name, parameter in module.named_parameters():
        row = _row(name, tuple(parameter.shape), size, shapes, module)
        if row is None:
            strange.append(f"{name} {tuple(parameter.shape)}")
        else:
            rows.append(row)
    covered = {row.published for row in rows}
    missing = [name for name in shapes if name not in covered]
    if strange or missing:
        raise ValueError(
            "; ".join(
                text
                for text in (
                    f"of the subject, no published name fits {_some(strange)}" if strange else "",
                    f"of the checkpoint, no parameter of the subject fits {_some(missing)}" if missing else "",
                )
                if text
            )
        )
    return WeightMap(tuple(rows))


def _row(
    name: str, shape: tuple[int, ...], size: Size, shapes: dict[str, tuple[int, ...]], module: nn.Module
) -> Row | None:
    component, leaf, part = _component(name, size)
    if component is None:
        return None
    published = f"{component}.{leaf}"
    if published == "lm_head.weight":
        return Row(published, name, transposed=False) if shape == shapes["transformer.wte.weight"] else None
    if published not in shapes:
        return None
    wanted = shapes[published]
    if part is not None:
        wanted = (*wanted[:-1], part[1] - part[0])
    if len(wanted) == 2 and not component.endswith(("wte", "wpe")):
        holder = module.get_submodule(name.rpartition(".")[0])
        transposed = isinstance(holder, nn.Linear) or (shape != wanted and shape == wanted[::-1])
        if shape == (wanted[::-1] if transposed else wanted):
            return Row(published, name, transposed, part)
        return None
    return Row(published, name, False, part) if shape == wanted else None


def _component(name: str, size: Size) -> tuple[str | None, str, tuple[int, int] | None]:
    """(published component, 'weight' | 'bias', columns of the fused projection) of an own parameter name."""
    short = name
    while prefix := next((p for p in PREFIXES if short.startswith(p)), None):
        short = short[len(prefix) :]
    path, _, last = short.rpartition(".")
    leaf = next((value for pattern, value in LEAVES.items() if re.fullmatch(pattern, last)), None)
    if leaf is None:  # a bare parameter, as in `self.pos_emb = nn.Parameter(...)`
        path, leaf = short, "weight"
    if (block := re.fullmatch(BLOCKS, path)) is not None:
        for pattern, component in BLOCK.items():
            if (match := re.fullmatch(pattern, block["rest"])) is not None:
                return f"transformer.h.{block['layer']}.{component}", leaf, _columns(match, size)
        return None, leaf, None
    for pattern, component in MODEL.items():
        if re.fullmatch(pattern, path):
            return component if component == "lm_head" else f"transformer.{component}", leaf, None
    return None, leaf, None


def _columns(match: re.Match[str], size: Size) -> tuple[int, int] | None:
    """Which columns of the published c_attn a separate query, key or value projection holds."""
    groups = match.groupdict()
    if "part" not in groups:
        return None
    word = groups["part"].lower().removeprefix("w").lstrip("_")
    start = "qkv".index(word[0]) * size.width
    if groups.get("head") is None:
        return start, start + size.width
    start += int(groups["head"]) * size.head_width
    return start, start + size.head_width


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
