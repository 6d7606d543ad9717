"""What was understood of a subject, step by step, before any check is run; and how a terminal shows it."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import Missing, SubjectError
from harness.core.sizes import SIZES, Size
from harness.oracle import noise_verdict
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.adapters import adapt
from harness.subjects.adapters.construction import SYNONYMS
from harness.subjects.adapters.generation import NEW_TOKENS, PASTS, generator_of
from harness.subjects.adapters.generic import AdaptedSubject
from harness.subjects.forward_call import forward_parameters, targets_keyword
from harness.subjects.model import (
    Caches,
    Checkpoints,
    ChoosesAttention,
    ChoosesInit,
    Generates,
    Model,
    Subject,
    Unties,
    build_with_weights,
)
from harness.subjects.weight_map import MappedWeight, WeightMap, family

ADAPTER = """\
from harness.subjects.forward_call import call
from harness.subjects.model import Model
from harness.subjects.weight_map import MappedWeight, WeightMap


class Mine:
    name = "mine"

    def build(self, size, *, seed=0, dtype="float32", device="cpu", **options):
        module = MyGPT(size.vocab_size, size.context, size.width, size.layers, size.heads)
        rows = (MappedWeight("transformer.wte.weight", "emb.table"), ...)  # published, yours; transposed=True for nn.Linear
        return Model(module.eval(), size, call, WeightMap(rows))
"""
# What each ability was looked for as, for those that are not there.
LOOKED_FOR = {
    ChoosesAttention: f"a setting ({', '.join(SYNONYMS['attention'][:3])}) whose choices are said by Literal[...], an "
    "`attentions` of the class, or a tuple of the module",
    ChoosesInit: f"a setting ({', '.join(SYNONYMS['init'][:3])}) whose choices are said likewise, or by `recipes`",
    Unties: f"a setting ({', '.join(SYNONYMS['tied'][:4])})",
    Generates: f"a method generate(ids, n, ...) with a second name that has one of {', '.join(NEW_TOKENS[:4])} in it, "
    "or a function generate...(model, ids, n, ...) beside the class",
    Caches: f"new_cache(batch) and forward(ids, cache=...), or forward(ids, {PASTS[0]}|{PASTS[1]}|..., use_cache), or "
    "use_cache and reset_kv_cache()",
    Checkpoints: "from_pretrained(directory) and save_pretrained(directory)",
}


@dataclass
class Understood:
    """What was understood, as rows of (label, text); the step at which it ended, if it did."""

    spec: str
    facts: dict[str, str] = field(default_factory=dict)
    abilities: dict[str, str] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)
    weights: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unmapped_parameters: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failed: str = ""
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {key: value for key, value in vars(self).items() if value not in ("", [], {})}


def understand(spec: str) -> Understood:
    """Look at the subject step by step, at the debug size; what fails ends it, and is told."""
    found = Understood(spec)
    steps: list[tuple[str, Callable[[], Any]]] = []
    held: dict[str, Any] = {}
    size = SIZES["debug"]

    def find() -> None:
        held["subject"] = adapt(spec)
        found.facts["found"] = _found(held["subject"])

    def build() -> None:
        held["model"] = held["subject"].build(size)
        found.facts["built"] = _built(held["subject"], size)

    def call() -> None:
        found.facts["called"] = _called(held["model"])

    def abilities() -> None:
        _abilities(held["subject"], held["model"], found)

    def weights() -> None:
        _weights(held["subject"], held["model"], found)

    steps += [("find it", find), ("build it", build), ("call it", call)]
    steps += [("list its abilities", abilities), ("map its weights", weights)]
    for name, step in steps:
        try:
            with torch.random.fork_rng():
                step()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a subject raises what it likes
            found.failed = name
            told = " ".join(str(error).split())[:600]
            found.error = told if isinstance(error, SubjectError | Missing) else f"{type(error).__name__}: {told}"
            break
    return found


def _found(subject: Subject) -> str:
    if not isinstance(subject, AdaptedSubject):
        return f"an adapter, {type(subject).__name__}, taken as it is"
    target = subject.target
    kind = "class" if inspect.isclass(target) else "module instance" if isinstance(target, nn.Module) else "function"
    try:
        file = inspect.getsourcefile(target if inspect.isclass(target) or inspect.isfunction(target) else type(target))
        line = inspect.getsourcelines(target if kind != "module instance" else type(target))[1]
        place = f", {file}:{line}"
    except (TypeError, OSError):
        place = ""
    return f"{kind} {getattr(target, '__name__', type(target).__name__)}{place}"


def _built(subject: Subject, size: Size) -> str:
    if not isinstance(subject, AdaptedSubject):
        return f"by its own build, at the {size.name} size"
    if not subject.how.words:
        return f"by {subject.how.how}; it has one size, which is {size.name}"
    arguments = subject.how.arguments(size)
    if subject.how.how == "a dict":
        return f"from a dict with every name that people use for a size, vocab_size={size.vocab_size} and so on"
    return f"from {subject.how.how}: {', '.join(f'{word}={value!r}' for word, value in sorted(arguments.items()))}"


def _called(model: Model) -> str:
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    with torch.no_grad():
        alone = model.logits_alone(ids)
        model.logits(ids)
        _, loss = model.calling(model.module, ids, ids)
    words = ", ".join(forward_parameters(model.module))
    keyword = targets_keyword(model.module)
    parts = [f"forward({words})", f"(2, 4) ids give {_answer(alone, ids)}"]
    if keyword is None:
        parts.append("it takes no targets, so that the loss is computed from the logits")
    else:
        parts.append(f"with {keyword}, logits of every position and {'a loss' if loss is not None else 'no loss'}")
    return "; ".join(parts)


def _answer(logits: Tensor, ids: Tensor) -> str:
    which = "every position" if logits.shape[1] == ids.shape[1] else "the last position only"
    return f"logits {tuple(logits.shape)}, of {which}"


def _abilities(subject: Subject, model: Model, found: Understood) -> None:
    how = generator_of(type(model.module), getattr(subject, "module", None))
    said = {
        ChoosesAttention: lambda s: ", ".join(s.attentions),
        ChoosesInit: lambda s: ", ".join(s.recipes),
        Generates: lambda s: "" if how is None else f"{how.function.__name__}({', '.join(how.parameters)})",
    }
    for ability, looked_for in LOOKED_FOR.items():
        if isinstance(subject, ability):
            found.abilities[ability.__name__] = said.get(ability, lambda s: "")(subject)
        else:
            found.lacking[ability.__name__] = looked_for


def _weights(subject: Subject, model: Model, found: Understood) -> None:
    weights = model.weights
    own = dict(model.module.named_parameters())
    found.weights = _folded(weights, own)
    found.notes = list(weights.notes)
    found.unmapped_parameters = [f"{name} {tuple(own[name].shape)}" for name in weights.unmapped_parameters]
    found.missing = list(dict.fromkeys(_published(row) for row in weights.missing))
    found.facts["weights"] = (
        f"{len(weights.rows)} rows{'' if weights.gaps else ', complete'}; {_proof(subject, model.size)}"
    )


def _proof(subject: Subject, size: Size) -> str:
    """What behaviour says of the map: with the probe weights in it, the logits are GPT-2's, or they are not."""
    ids, _ = batch(size, "random", rows=2, length=min(24, size.context))
    with torch.no_grad():
        expected = oracle(size, state(size.name, "probe"), "float64").logits(ids)
        own = build_with_weights(subject, size, state(size.name, "probe"), "float64").logits(ids)
    gap = noise_verdict.distance(own, expected) / noise_verdict.largest(expected)
    if gap < 1e-10:
        return f"proved: with probe weights the logits are Hugging Face's, to {gap:.0e} in float64"
    return (
        f"not proved: with probe weights the logits differ from Hugging Face's by {gap:.1g} of the largest. The map "
        "may be right and the model not be GPT-2: pytest verifications/ says where"
    )


def _folded(weights: WeightMap, own: dict[str, nn.Parameter]) -> list[dict[str, str]]:
    """The rows, one for all layers where they are alike but for the layer's number."""
    groups: dict[tuple[str, ...], list[MappedWeight]] = {}
    for row in weights.rows:
        shape = "x".join(map(str, own[row.own].shape))
        key = (re.sub(r"\d+", "#", row.own), shape, _published(row), _as(row), row.how)
        groups.setdefault(key, []).append(row)
    return [
        {"own": _range([row.own for row in rows]), "shape": shape, "published": published, "as": lies, "by": how}
        for (_, shape, published, lies, how), rows in groups.items()
    ]


def _published(row: MappedWeight) -> str:
    """The family, and of the fused projection which part: its queries, its keys, or one head's."""
    name = family(row.published)
    if row.part is None:
        return name
    start, stop = row.part
    C, D = SIZES["debug"].width, SIZES["debug"].head_width
    if "c_attn" not in name:
        return f"{name}, head {start // D}" if stop - start == D else f"{name}[{start}:{stop}]"
    words = "".join(("q", "k", "v")[third] for third in range(start // C, max(start // C + 1, stop // C)))
    return f"{name}, {words}{f' of head {start % C // D}' if stop - start == D else ''}"


def _as(row: MappedWeight) -> str:
    if row.layout is not None:
        view = "" if row.layout.view is None else f" of {'x'.join(map(str, row.layout.view))}"
        cut = "" if all(entry is None for entry in row.layout.index) else " a piece,"
        return f"{cut} axes {','.join(map(str, row.layout.axes))}{view}".strip()
    return "transposed" if row.transposed else "as it is"


def _range(names: list[str]) -> str:
    """`h.0.w`, `h.1.w`, `h.2.w` -> `h.{0..2}.w`."""
    words = [re.split(r"(\d+)", name) for name in names]
    folded = []
    for column in zip(*words, strict=True):
        values = list(dict.fromkeys(column))
        folded.append(values[0] if len(values) == 1 else f"{{{values[0]}..{values[-1]}}}")
    return "".join(folded)


def shown(found: Understood, width: int = 110) -> str:
    """What was understood, for a terminal."""
    lines = [found.spec, ""]

    def put(label: str, text: str) -> None:
        lines.extend(
            textwrap.wrap(
                text, width, initial_indent=f"{label:<10}", subsequent_indent=" " * 10, break_on_hyphens=False
            )
            or [label]
        )

    for label in ("found", "built", "called"):
        if label in found.facts:
            put(label, found.facts[label])
    for number, (name, text) in enumerate(found.abilities.items()):
        put("" if number else "can", f"{name}{': ' if text else ''}{text}")
    for number, (name, text) in enumerate(found.lacking.items()):
        put("" if number else "cannot", f"{name}: looked for {text}")
    if "weights" in found.facts:
        put("weights", found.facts["weights"])
        lines += ["", *_table(found.weights), ""]
    for note in found.notes:
        put("note", note)
    for name in found.unmapped_parameters:
        put("strange", f"{name}: GPT-2 has no such parameter; it keeps its own values")
    for name in found.missing:
        put("missing", f"{name}: the subject has no such parameter; nothing is written there")
    if found.failed:
        lines.append("")
        put("failed", f"to {found.failed}: {found.error}")
        put("", "If this cannot be mended in the file, say it in an adapter, and name that as the subject:")
        lines += ["", *textwrap.indent(ADAPTER, "    ").splitlines()]
    return "\n".join(line.rstrip() for line in lines)


def _table(rows: list[dict[str, str]]) -> list[str]:
    header = {"own": "own", "shape": "shape", "published": "GPT-2's", "as": "lies", "by": "known by"}
    widths = {key: max(len(row[key]) for row in [header, *rows]) for key in header}
    return ["  ".join(f"{row[key]:<{widths[key]}}" for key in header).rstrip() for row in [header, *rows]]
