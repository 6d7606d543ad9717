"""What a model's parameter names and shapes say of the weight map: the styles that people write, by one table."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace

from torch import nn

from harness.core.sizes import Size
from harness.subjects.weight_map import Layout, MappedWeight, WeightMap, published_shapes

# Patterns of own names (below the model, prefixes stripped), and the published component they stand for.
MODEL = {
    r"wte|tok(en)?s?_?emb(edding)?s?|tok_embeddings|token_embedding_table|embed(ding)?s?|embed_tokens|W_E|embed\.W_E"
    r"|(word|token)_embeddings?|emb(eddings)?\.(tok|token|word|wte)(_emb(edding)?s?)?": "wte",
    r"wpe|pos_?emb(edding)?s?|pos_?embed|position(al)?_?emb(edding)?s?|position_embedding_table|pos_encoding|W_pos"
    r"|pos_embed\.W_pos|emb(eddings)?\.(pos|position|wpe)(_emb(edding)?s?)?": "wpe",
    r"ln_?f|final_(layer_?)?norm|norm_f|ln_final|norm|final_layer_norm|layer_?norm|ln_out|out_norm|final_ln": "ln_f",
    r"lm_head|out_head|head|output|unembed|to_logits|output_layer|W_U|unembed\.W_U": "lm_head",
}
# Whatever the container is called: what the number is followed by decides.
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
    rf"{FEED_FORWARD}\.(c_proj|fc_?2|down|down_proj|fc_out|(layers|net)\.2|2|lin(ear)?_?2|w2|out|W_out)|linear2": (
        "mlp.c_proj"
    ),
}
LEAVES = {r"weight|scale|gamma|gain|g|w|a_2": "weight", r"bias|shift|beta|b|b_2": "bias"}
PREFIXES = ("_orig_mod.", "module.", "transformer.", "model.", "gpt.", "decoder.", "net.", "backbone.")
# Names under which the order of the fused projection is the published one, q then k then v.
BINDING = r"c_attn"


@dataclass(frozen=True)
class ParsedNames:
    """What the names say: rows, the own parameters that they do not explain, and the rows that they leave open."""

    rows: tuple[MappedWeight, ...]
    unmapped_parameters: tuple[str, ...]
    open: frozenset[str]  # own names: a square matrix of unknown orientation, a fused one of unknown order

    def missing(self, size: Size) -> tuple[MappedWeight, ...]:
        """Published parameters, or parts of them, that no row stands for."""
        return absent(self.rows, size)


def map_by_names(module: nn.Module, size: Size) -> WeightMap:
    """The weight map of `module`. Raises ValueError naming what stands on either side without a partner."""
    read = read_names(module, size)
    found = WeightMap(read.rows, read.missing(size), read.unmapped_parameters)
    if found.gaps:
        raise ValueError(found.gaps)
    return found


def read_names(module: nn.Module, size: Size) -> ParsedNames:
    """What the names and shapes of the parameters say."""
    shapes = published_shapes(size)
    rows: dict[tuple[str, tuple[int, int] | None], MappedWeight] = {}
    unmapped_parameters, open_ = [], set()
    places = {name: _component(name, size) for name, _ in module.named_parameters()}
    numbers = sorted({place.layer for place in places.values() if place is not None and place.layer is not None})
    for name, parameter in module.named_parameters():
        place = places[name]
        if place is not None and place.layer is not None and len(numbers) == size.layers:
            place = replace(place, layer=numbers.index(place.layer))  # layers may be counted from one, or further on
        row, settled = (
            (None, False) if place is None else _row(name, place, tuple(parameter.shape), size, shapes, module)
        )
        if row is None or (row.published, row.part) in rows:
            unmapped_parameters.append(name)
            continue
        rows[row.published, row.part] = row
        if not settled:
            open_.add(name)
    return ParsedNames(tuple(rows.values()), tuple(unmapped_parameters), frozenset(open_))


def absent(rows: tuple[MappedWeight, ...], size: Size) -> tuple[MappedWeight, ...]:
    """Published parameters, or parts of them, that no row stands for, as rows without an own name."""
    missing = []
    for name, shape in published_shapes(size).items():
        held = [row for row in rows if row.published == name]
        if not held:
            missing.append(MappedWeight(name, ""))
            continue
        axis = held[0].axis
        position = 0
        for start, stop in sorted(row.part or (0, shape[axis]) for row in held):
            if start > position:
                missing.append(MappedWeight(name, "", part=(position, start), axis=axis))
            position = max(position, stop)
        if position < shape[axis]:
            missing.append(MappedWeight(name, "", part=(position, shape[axis]), axis=axis))
    return tuple(missing)


@dataclass(frozen=True)
class _Place:
    """What a name says: the component, 'weight' or 'bias', the layer, and the columns of the fused projection."""

    component: str
    leaf: str
    layer: int | None = None
    part: tuple[int, int] | None = None

    @property
    def published(self) -> str:
        if self.component == "lm_head":
            return "lm_head.weight" if self.leaf == "weight" else "lm_head.bias"
        return f"transformer.{'' if self.layer is None else f'h.{self.layer}.'}{self.component}.{self.leaf}"


def row_of(
    missing: MappedWeight, name: str, shape: tuple[int, ...], size: Size, module: nn.Module
) -> MappedWeight | None:
    """The row of an own parameter that stands for a missing published one; None where its shape does not fit."""
    words = missing.published.split(".")
    layer = int(words[2]) if words[1] == "h" else None
    component = ".".join(words[1 if layer is None else 3 : -1])
    place = _Place(component, words[-1], layer, missing.part)
    return _row(name, place, shape, size, published_shapes(size), module)[0]


def _row(
    name: str,
    place: _Place,
    shape: tuple[int, ...],
    size: Size,
    shapes: dict[str, tuple[int, ...]],
    module: nn.Module,
) -> tuple[MappedWeight | None, bool]:
    """The row of an own parameter, and whether its name and shape settle how it lies."""
    component, part, published = place.component, place.part, place.published
    wanted = shapes.get("transformer.wte.weight" if published == "lm_head.weight" else published)
    if wanted is None:
        return None, False
    if part is not None:
        wanted = (*wanted[:-1], part[1] - part[0])
    if component.endswith(("wte", "wpe", "lm_head")):
        return table_row(published, name, shape, wanted), True
    if len(wanted) == 1:
        if shape == wanted:
            return MappedWeight(published, name, False, part, how="name"), component[-6:] != "c_attn" or order_is_known(
                name, part, module
            )
        fits = shape and len(shape) > 1 and layouts(shape, wanted, size)
        return (MappedWeight(published, name, False, part, layout=fits[0], how="name"), True) if fits else (None, False)
    linear = is_out_in(name, module)
    if len(shape) == 2:
        transposed = linear or (shape != wanted and shape == wanted[::-1])
        if shape != (wanted[::-1] if transposed else wanted):
            return None, False
        settled = linear or wanted[0] != wanted[1] or type(_holder(name, module)).__name__ == "Conv1D"
        if component.endswith("c_attn"):
            settled = settled and order_is_known(name, part, module)
        return MappedWeight(published, name, transposed, part, how="name"), settled
    fits = layouts(shape, wanted, size)
    if linear:  # (out, in, 1)
        fits = [layout for layout in fits if layout.axes == (1, 0)]
    settled = len(fits) == 1 and (part is not None or not component.endswith("c_attn"))
    return (MappedWeight(published, name, False, part, layout=fits[0], how="name"), settled) if fits else (None, False)


def table_row(published: str, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> MappedWeight | None:
    """An embedding, or the head: perhaps with axes of one, perhaps with more rows than there are tokens."""
    core = tuple(n for n in shape if n != 1)
    if shape == wanted:
        return MappedWeight(published, name, how="name")
    if core == wanted:
        return MappedWeight(published, name, layout=Layout((0, 1), 1, view=wanted), how="name")
    if published == "lm_head.weight" and core == wanted[::-1]:
        return MappedWeight(published, name, transposed=True, how="name")
    if len(core) == 2 and core[1] == wanted[1] and core[0] > wanted[0] and "wpe" not in published:
        return MappedWeight(published, name, layout=Layout((0, 1), 1, core, ((0, wanted[0]), None)), how="name")
    return None


def layouts(shape: tuple[int, ...], wanted: tuple[int, ...], size: Size) -> list[Layout]:
    """The ways in which an own tensor of another number of axes can hold a published one: per-head axes, mostly."""
    core = tuple(n for n in shape if n != 1)
    factors = {size.width: [(size.width,), (size.heads, size.head_width)]}
    factors[3 * size.width] = [(3 * size.width,), (3, size.width), (3, size.heads, size.head_width)]
    forms = [factors.get(n, [(n,)]) for n in wanted]
    found = []
    for split in itertools.product(*forms):
        flat = tuple(itertools.chain(*split))
        if sorted(flat) != sorted(core):
            continue
        for axes in itertools.permutations(range(len(core))):
            if tuple(core[axis] for axis in axes) == flat:
                rows = None if len(wanted) == 1 else len(split[0])
                found.append(Layout(axes, rows, None if core == shape else core))
    return found


def is_out_in(name: str, module: nn.Module) -> bool:
    """Whether a matrix is one of torch's own layers, which keep (out, in)."""
    return isinstance(_holder(name, module), nn.Linear | nn.MultiheadAttention | nn.Conv1d | nn.Conv2d)


def _holder(name: str, module: nn.Module) -> nn.Module:
    return module.get_submodule(name.rpartition(".")[0])


def order_is_known(name: str, part: tuple[int, int] | None, module: nn.Module) -> bool:
    """Whether the name says in which order a fused projection holds q, k and v, or that it holds just one."""
    return (
        part is not None
        or isinstance(_holder(name, module), nn.MultiheadAttention)
        or re.search(rf"(^|\.){BINDING}(\.|_|$)", name) is not None
    )


def spelt_order(name: str, parts: int) -> tuple[int, ...]:
    """The parts of a projection in the order in which its name spells them: `to_kv` -> (1, 2); () where it does not."""
    match = re.search(r"(?:^|[._])(?:to_?|[wc]_?)?(?P<letters>[qkv]{1,3})(?:_?proj)?(?:[._]|$)", name.lower())
    kinds = tuple("qkv".index(letter) for letter in match["letters"]) if match else ()
    return kinds if len(set(kinds)) == len(kinds) == parts else ()


def _component(name: str, size: Size) -> _Place | None:
    """What an own parameter's name says it is; None where it says nothing."""
    short = name
    while prefix := next((p for p in PREFIXES if short.startswith(p)), None):
        short = short[len(prefix) :]
    for path, leaf in _read_leaf(short):
        if (block := re.fullmatch(BLOCKS, path)) is not None:
            for pattern, component in BLOCK.items():
                if (match := re.fullmatch(pattern, block["rest"])) is not None:
                    return _Place(component, leaf, int(block["layer"]), _columns(match, size))
            continue
        for pattern, component in MODEL.items():
            if re.fullmatch(pattern, path):
                return _Place(component, leaf)
    return None


def stem_and_leaf(name: str) -> tuple[str, str]:
    """An own name without its last word, and whether that speaks of a 'weight' (a gain, a scale) or a 'bias'."""
    ways = _read_leaf(name)
    return next(((stem, leaf) for stem, leaf in ways if stem != name), ways[0])


def _read_leaf(name: str) -> list[tuple[str, str]]:
    """(path of the component, 'weight' | 'bias'), in the ways in which a name can say it; the likeliest first."""
    path, _, last = name.rpartition(".")
    ways = [(path, leaf) for pattern, leaf in LEAVES.items() if re.fullmatch(pattern, last)]
    before = f"{path}." if path else ""
    ways.append((name, "weight"))  # a bare parameter, as in `self.pos_emb = nn.Parameter(...)`
    if match := re.fullmatch(r"(?P<stem>.+?)_(?P<leaf>weight|bias|w|b|scale|shift|gamma|beta|gain|g)", last):
        leaf = next(leaf for pattern, leaf in LEAVES.items() if re.fullmatch(pattern, match["leaf"]))
        ways.append((before + match["stem"], leaf))
    if match := re.fullmatch(r"(?P<leaf>bias|b)_?(?P<stem>[QKVOqkvo]|in|out|qkv|query|key|value)", last):
        ways.append((f"{before}W_{match['stem']}", "bias"))
    return ways


def _columns(match: re.Match[str], size: Size) -> tuple[int, int] | None:
    """Which columns of the published c_attn a separate query, key or value projection holds."""
    groups = match.groupdict()
    if "part" not in groups or groups["part"] is None:
        return None
    word = re.sub(r"^(to|c|w)?_", "", groups["part"].lower())
    word = word.removeprefix("w") if len(word) > 1 and word[0] == "w" else word
    start = "qkv".index(word[0]) * size.width
    if groups.get("head") is None:
        return start, start + size.width
    start += int(groups["head"]) * size.head_width
    return start, start + size.head_width
