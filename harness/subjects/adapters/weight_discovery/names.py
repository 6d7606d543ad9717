"""Parse the name of a parameter: which published component it is, under the naming styles in common use."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from harness.core.sizes import Size

# Patterns of own names outside the blocks (prefixes stripped), and the published component that each stands for.
MODEL = {
    r"wte|tok(en)?s?_?emb(edding)?s?|tok_embeddings|token_embedding_table|embed(ding)?s?|embed_tokens|W_E|embed\.W_E"
    r"|(word|token)_embeddings?|emb(eddings)?\.(tok|token|word|wte)(_emb(edding)?s?)?": "wte",
    r"wpe|pos_?emb(edding)?s?|pos_?embed|position(al)?_?emb(edding)?s?|position_embedding_table|pos_encoding|W_pos"
    r"|pos_embed\.W_pos|emb(eddings)?\.(pos|position|wpe)(_emb(edding)?s?)?": "wpe",
    r"ln_?f|final_(layer_?)?norm|norm_f|ln_final|norm|final_layer_norm|layer_?norm|ln_out|out_norm|final_ln": "ln_f",
    r"lm_head|out_head|head|output|unembed|to_logits|output_layer|W_U|unembed\.W_U": "lm_head",
}
# The container of the blocks may have any name: the words after the layer's number decide.
BLOCKS = r"(.+\.)?[A-Za-z_]*[._]?(?P<layer>\d+)\.(?P<rest>[A-Za-z_].*)"
ATTENTION = "(attn|att|sa|sa_head|self_attn|self_attention|attention|mha)"
FEED_FORWARD = "(mlp|ff|ffn|ffwd|feed_?forward)"
BLOCK = {
    r"(ln_?1|norm_?1|attn_norm|ln_attn|attention_norm|input_layernorm|layer_?norm_?1|ln_?attn|pre_attn_norm)": "ln_1",
    r"(ln_?2|norm_?2|mlp_norm|ffn_norm|ln_mlp|post_attention_layernorm|layer_?norm_?2|ff_norm|pre_mlp_norm)": "ln_2",
    rf"{ATTENTION}\.(c_attn|qkv|qkv_proj|in_proj|to_qkv|c_qkv|W_?qkv)": "attn.c_attn",
    rf"{ATTENTION}\.heads\.(?P<head>\d+)\.(?P<part>(W_|to_)?(query|key|value)|(to_)?[qkv](_proj)?)": "attn.c_attn",
    rf"({ATTENTION}\.)?(?P<part>(W_|to_)?(query|key|value)s?(_proj)?|(w|to|c)?_?[qkvQKV](_proj|_lin)?|W_?[qkvQKV])": (
        "attn.c_attn"
    ),
    rf"{ATTENTION}\.(c_proj|out_proj|proj|o_proj|to_out(\.0)?|W_?[oO]|out|output|dense|wo)": "attn.c_proj",
    rf"{FEED_FORWARD}\.(c_fc|fc_?1|up|up_proj|fc_in|(layers|net)\.0|0|lin(ear)?_?1|w1|in|W_in)|linear1": "mlp.c_fc",
    rf"{FEED_FORWARD}\.(c_gate|gate|gate_proj|fc_gate|W_?gate|w_?gate)": "mlp.c_gate",
    rf"{FEED_FORWARD}\.(c_proj|fc_?2|down|down_proj|fc_out|(layers|net)\.2|2|lin(ear)?_?2|w2|out|W_out)|linear2": (
        "mlp.c_proj"
    ),
}
LEAVES = {r"weight|scale|gamma|gain|g|w|a_2": "weight", r"bias|shift|beta|b|b_2": "bias"}
PREFIXES = ("_orig_mod.", "module.", "transformer.", "model.", "gpt.", "decoder.", "net.", "backbone.")
# A fused projection of this name has the published order: queries, then keys, then values.
PUBLISHED_ORDER = r"c_attn"


@dataclass(frozen=True)
class ParsedName:
    """The meaning of a name: component, 'weight' or 'bias', layer, and the columns of the fused projection."""

    component: str
    leaf: str
    layer: int | None = None
    part: tuple[int, int] | None = None

    @property
    def published(self) -> str:
        """The published name of the parameter."""
        if self.component == "lm_head":
            return "lm_head.weight" if self.leaf == "weight" else "lm_head.bias"
        return f"transformer.{'' if self.layer is None else f'h.{self.layer}.'}{self.component}.{self.leaf}"


@functools.lru_cache(maxsize=4096)  # a model is built hundreds of times
def parse_name(name: str, size: Size) -> ParsedName | None:
    """Return the meaning of an own parameter's name; None where no pattern matches."""
    short = name
    while prefix := next((p for p in PREFIXES if short.startswith(p)), None):
        short = short[len(prefix) :]
    for path, leaf in _paths_and_leaves(short):
        if (block := re.fullmatch(BLOCKS, path)) is not None:
            for pattern, component in BLOCK.items():
                if (match := re.fullmatch(pattern, block["rest"])) is not None:
                    return ParsedName(component, leaf, int(block["layer"]), _columns(match, size))
            continue
        for pattern, component in MODEL.items():
            if re.fullmatch(pattern, path):
                return ParsedName(component, leaf)
    return None


def stem_and_leaf(name: str) -> tuple[str, str]:
    """Return an own name without its last word, and 'weight' (also for a gain or a scale) or 'bias'."""
    candidates = _paths_and_leaves(name)
    return next(((stem, leaf) for stem, leaf in candidates if stem != name), candidates[0])


def spelled_order(name: str, parts: int) -> tuple[int, ...]:
    """Return the order of the parts that a projection's name spells, `to_kv` -> (1, 2); () where it spells none."""
    match = re.search(r"(?:^|[._])(?:to_?|[wc]_?)?(?P<letters>[qkv]{1,3})(?:_?proj)?(?:[._]|$)", name.lower())
    kinds = tuple("qkv".index(letter) for letter in match["letters"]) if match else ()
    return kinds if len(set(kinds)) == len(kinds) == parts else ()


def _paths_and_leaves(name: str) -> list[tuple[str, str]]:
    """Return the possible (path of the component, 'weight' or 'bias') of a name, the most likely first."""
    path, _, last = name.rpartition(".")
    candidates = [(path, leaf) for pattern, leaf in LEAVES.items() if re.fullmatch(pattern, last)]
    before = f"{path}." if path else ""
    candidates.append((name, "weight"))  # a bare parameter, as in `self.pos_emb = nn.Parameter(...)`
    if match := re.fullmatch(r"(?P<stem>.+?)_(?P<leaf>weight|bias|w|b|scale|shift|gamma|beta|gain|g)", last):
        leaf = next(leaf for pattern, leaf in LEAVES.items() if re.fullmatch(pattern, match["leaf"]))
        candidates.append((before + match["stem"], leaf))
    if match := re.fullmatch(r"(?P<leaf>bias|b)_?(?P<stem>[QKVOqkvo]|in|out|qkv|query|key|value)", last):
        candidates.append((f"{before}W_{match['stem']}", "bias"))
    return candidates


def _columns(match: re.Match[str], size: Size) -> tuple[int, int] | None:
    """Return the columns (start, stop) of the published c_attn that a separate query, key or value projection has."""
    groups = match.groupdict()
    if "part" not in groups or groups["part"] is None:
        return None
    word = re.sub(r"^(to|c|w)?_", "", groups["part"].lower())
    word = word.removeprefix("w") if len(word) > 1 and word[0] == "w" else word
    kind = "qkv".index(word[0])
    start, stop = size.third_edges[kind : kind + 2]
    if groups.get("head") is None:
        return start, stop
    start += int(groups["head"]) * size.head_width
    return start, start + size.head_width
