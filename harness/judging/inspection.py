"""Inspection of a subject before any check is run: how it is built and called, its abilities, its weight map."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.error_text import describe_error
from harness.core.errors import Missing, SubjectError
from harness.core.process_exit import subject_at_work
from harness.core.sizes import SIZES, Size
from harness.core.source_lines import SourceLine
from harness.judging.unreadable import import_notes, lines_to_paste, settings_notes
from harness.oracle import noise_verdict
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.adapters import adapt
from harness.subjects.adapters.adapted_subject import AdaptedSubject
from harness.subjects.adapters.construction.setting_names import SYNONYMS
from harness.subjects.adapters.experts import SETTINGS as EXPERT_SETTINGS
from harness.subjects.adapters.generation import NEW_TOKENS, generate_function_of
from harness.subjects.adapters.key_value_cache import PASTS
from harness.subjects.adapters.scaling_law import FUNCTIONS, scaling_function_of
from harness.subjects.adapters.serving import STEP, SUBMIT
from harness.subjects.build import build_with_weights
from harness.subjects.compiled import class_of
from harness.subjects.forward_call import targets_keyword, why_no_targets
from harness.subjects.forward_style import forward_parameters, style_of
from harness.subjects.model import Model
from harness.subjects.protocols import (
    AllocatesCompute,
    Caches,
    Checkpoints,
    ChoosesAttention,
    ChoosesInit,
    CountsTrainingFlops,
    FitsIsoFlops,
    FitsScalingLaw,
    Generates,
    LoadsTensors,
    MixesExperts,
    Parallelizes,
    ReadsRuns,
    Serves,
    Speculates,
    Subject,
    Unties,
)
from harness.subjects.ranks.program import KINDS, NAMES, WRAPS
from harness.subjects.weight_map import MappedWeight, WeightMap, family

# For each ability, what the adapter looks for in a subject. Printed if the subject lacks the ability.
LOOKED_FOR = {
    ChoosesAttention: f"a setting ({', '.join(SYNONYMS['attention'][:3])}) whose choices are said by Literal[...], an "
    "`attentions` of the class, or a tuple of the module",
    ChoosesInit: f"a setting ({', '.join(SYNONYMS['init'][:3])}) whose choices are said likewise, or by `recipes`",
    Unties: f"a setting ({', '.join(SYNONYMS['tied'][:4])})",
    Generates: f"a method generate(ids, n, ...) with a second name that has one of {', '.join(NEW_TOKENS[:4])} in it, "
    "or a function generate...(model, ids, n, ...) beside the class",
    Speculates: "a method, or a function or a class beside the class, whose name has 'speculative' or 'assisted' in "
    "it, and parameters target, draft, prompt and number of tokens",
    Caches: f"new_cache(batch) and forward(ids, cache=...), or forward(ids, {PASTS[0]}|{PASTS[1]}|..., use_cache), or "
    "use_cache and reset_kv_cache()",
    Checkpoints: "from_pretrained(directory) and save_pretrained(directory)",
    MixesExperts: "a class beside the GPT's or a layer inside it whose name has MoE, MixtureOfExperts or the like, "
    f"with settings such as {', '.join(EXPERT_SETTINGS['experts'][:3])} and "
    f"{', '.join(EXPERT_SETTINGS['experts_per_token'][:3])}",
    LoadsTensors: "a method load...(state_dict), or a function load...(model, state_dict) beside the class",
    Parallelizes: f"a function (model) or (model, mesh) beside the class, called {', '.join(WRAPS[:2])} or "
    f"{', '.join(NAMES[kind][1] for kind in KINDS)} ...",
    Serves: f"a class beside it, made with a model, with a method {'|'.join(SUBMIT[:3])}(prompt, ...) and a method "
    f"{'|'.join(STEP[:2])}()",
    FitsScalingLaw: f"a function {FUNCTIONS['fit'][0]}|{FUNCTIONS['fit'][1]}|...(N, D, L) beside the class",
    FitsIsoFlops: f"a function {FUNCTIONS['iso_flops'][0]}|{FUNCTIONS['iso_flops'][4]}|...(C, N, L) beside the class",
    AllocatesCompute: f"a function {FUNCTIONS['optimum'][0]}|{FUNCTIONS['optimum'][2]}|...(C, law) beside the class",
    CountsTrainingFlops: f"a function {FUNCTIONS['flops'][0]}|{FUNCTIONS['flops'][1]}|...(N, D) beside the class",
    ReadsRuns: f"a function {FUNCTIONS['runs'][0]}|{FUNCTIONS['runs'][1]}|...(path of a CSV file) beside the class",
}

# The abilities that a function for scaling laws gives, by its purpose in the table of names.
SCALING = {
    "fit": FitsScalingLaw,
    "iso_flops": FitsIsoFlops,
    "optimum": AllocatesCompute,
    "flops": CountsTrainingFlops,
    "runs": ReadsRuns,
}


@dataclass
class Inspection:
    """The results of each step as text, by label; and the step that failed with its error, if one did.

    `abilities` maps the name of an ability to its details, `lacking` to what was looked for. Each row of `weights` has
    the keys own, shape, published, as and by. `paste` are lines with which it can be judged, if it cannot
    as it is.
    """

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
    paste: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that are not empty, ready for JSON."""
        return {key: value for key, value in vars(self).items() if value not in ("", [], {})}


class _Steps:
    """The steps of an inspection, in order; each uses what the steps before it found."""

    def __init__(self, result: Inspection) -> None:
        self.result = result
        self.size = SIZES["debug"]
        self.subject: Any = None
        self.model: Any = None

    def find(self) -> None:
        self.subject = adapt(self.result.spec)
        self.result.facts["found"] = _describe_origin(self.subject)
        self.result.notes += import_notes(self.subject)

    def build(self) -> None:
        self.model = self.subject.build(self.size)
        self.result.facts["built"] = _describe_build(self.subject, self.size)
        self.result.notes += settings_notes(self.subject, self.model)

    def call(self) -> None:
        self.result.facts["called"] = _describe_call(self.model)

    def list_abilities(self) -> None:
        _add_abilities(self.result, self.subject, self.model)

    def map_weights(self) -> None:
        _add_weights(self.result, self.subject, self.model)


def inspect_subject(spec: str) -> Inspection:
    """Inspect the subject `spec` step by step, at the debug size.

    The first step that fails ends the inspection; its name and its error are part of the result. A subject's exception
    never leaves this function, except KeyboardInterrupt.
    """
    result = Inspection(spec)
    steps = _Steps(result)
    named: dict[str, Callable[[], None]] = {
        "find it": steps.find,
        "build it": steps.build,
        "call it": steps.call,
        "list its abilities": steps.list_abilities,
        "map its weights": steps.map_weights,
    }
    for name, step in named.items():
        try:
            with torch.random.fork_rng(), subject_at_work():
                step()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a subject may raise anything, SystemExit too
            result.failed = name
            message = " ".join(str(error).split())[:600]
            result.error = (
                message if isinstance(error, SubjectError | Missing) else f"{type(error).__name__}: {message}"
            )
            if steps.subject is not None and name in ("build it", "call it"):
                result.paste = lines_to_paste(steps.subject, steps.model)
            break
    return result


def _describe_origin(subject: Subject) -> str:
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


def _describe_build(subject: Subject, size: Size) -> str:
    if not isinstance(subject, AdaptedSubject):
        return f"by its own build, at the {size.name} size"
    if not subject.constructor.words:
        sizes = f"; it has one size, which is {size.name}" if subject.has_one_size() else ""
        return f"by {subject.constructor.description}{sizes}"
    arguments = subject.constructor.arguments(size)
    if subject.constructor.description == "a dict":
        return f"from a dict with every name that people use for a size, vocab_size={size.vocab_size} and so on"
    shown = ", ".join(f"{word}={value!r}" for word, value in sorted(arguments.items()))
    return f"from {subject.constructor.description}{': ' if shown else ''}{shown}"


def _describe_call(model: Model) -> str:
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    with torch.no_grad():
        model.logits(ids)
        alone = model.logits_alone(ids)
        answer = _describe_loss(model, ids)
    parameters = ", ".join(forward_parameters(model.module))
    keyword, style = targets_keyword(model.module), style_of(model.module)
    parts = [f"forward({parameters})", f"(2, 4) ids give {_describe_logits(alone, ids)}"]
    parts += [f"it is given {name}: {argument.text}" for name, argument in style.arguments.items()]
    parts += [f"without {style.targets or 'targets'} it is given {n}: {a.text}" for n, a in style.alone.items()]
    if style.needs_targets:
        parts.append(f"it needs {style.targets}, and is given the ids for them where there are none")
    if style.one_sequence:
        parts.append("it takes one sequence (T,), and is called for each row")
    if keyword is None:
        parts.append(f"it {why_no_targets(model.module)}, so that the loss is computed from the logits")
    else:
        parts.append(f"with {keyword}, {answer}")
    return "; ".join(parts)


def _describe_loss(model: Model, ids: Tensor) -> str:
    """Return what a call with targets gives. An error there leaves the logits to be judged."""
    try:
        loss = model.calling(model.module, ids, ids)[1]
    except Exception as error:
        return f"it raises {describe_error(error)}"
    return f"logits of every position and {'a loss' if loss is not None else 'no loss'}"


def _describe_logits(logits: Tensor, ids: Tensor) -> str:
    which = "every position" if logits.shape[1] == ids.shape[1] else "the last position only"
    return f"logits {tuple(logits.shape)}, of {which}"


def _add_abilities(result: Inspection, subject: Subject, model: Model) -> None:
    how = generate_function_of(class_of(model.module), getattr(subject, "module", None))
    details: dict[Any, Callable[[Any], str]] = {
        ChoosesAttention: lambda s: ", ".join(s.attentions),
        ChoosesInit: lambda s: ", ".join(s.recipes),
        Parallelizes: lambda s: "; ".join(
            f"{role}: {function.text}" for role, function in s.parallel_program.functions.items()
        ),
        MixesExperts: _describe_experts,
        Serves: lambda s: s.engine_name,
        Speculates: lambda s: _describe_speculation(s, model),
        Generates: lambda s: "" if how is None else f"{how.function.__name__}({', '.join(how.parameters)})",
        **{ability: functools.partial(_scaling_function, purpose) for purpose, ability in SCALING.items()},
    }
    for ability, looked_for in LOOKED_FOR.items():
        if isinstance(subject, ability):
            result.abilities[ability.__name__] = details.get(ability, lambda s: "")(subject)
        else:
            result.lacking[ability.__name__] = looked_for


def _describe_experts(subject: MixesExperts) -> str:
    """Return which class was found and how its experts are called, or why none could be built."""
    try:
        return subject.build_experts(SIZES["debug"], experts=6, per_token=2).description
    except Missing as error:
        return str(error)


def _describe_speculation(subject: Speculates, model: Model) -> str:
    lines = {draft: SourceLine(*subject.speculation_line(model, draft)) for draft in subject.drafts(model)}
    return "; ".join(f"drafts by {draft}, {line}" for draft, line in lines.items())


def _scaling_function(purpose: str, subject: Any) -> str:
    """Return `fit_scaling_law(N, D, L)`; "" for an adapter that has the ability without such a function."""
    found = scaling_function_of(purpose, subject.kind, subject.module) if isinstance(subject, AdaptedSubject) else None
    return "" if found is None else f"{found.function.__name__}({', '.join(found.parameters)})"


def _add_weights(result: Inspection, subject: Subject, model: Model) -> None:
    weights = model.weights
    own = dict(model.module.named_parameters())
    result.weights = _fold_layers(weights, own, model.size)
    result.notes += weights.notes
    result.unmapped_parameters = [f"{name} {tuple(own[name].shape)}" for name in weights.unmapped_parameters]
    result.missing = list(dict.fromkeys(_published(row, model.size) for row in weights.missing))
    result.facts["weights"] = (
        f"{len(weights.rows)} rows{'' if weights.gaps else ', complete'}; {_compare_with_oracle(subject, model.size)}"
    )


def _compare_with_oracle(subject: Subject, size: Size) -> str:
    """Compare the logits with Hugging Face's, both with the probe weights: equal logits prove the weight map."""
    if not size.has_gpt2_widths:
        return f"not compared with Hugging Face's: {'; '.join(_own_widths(size))}. `pytest verifications/` names it"
    ids, _ = batch(size, "random", rows=2, length=min(24, size.context))
    with torch.no_grad():
        expected = oracle(size, state(size.name, "probe"), "float64").logits(ids)
        own = build_with_weights(subject, size, state(size.name, "probe"), "float64").logits(ids)
    gap = noise_verdict.distance(own, expected) / noise_verdict.max_abs(expected)
    if gap < 1e-10:
        return f"proved: with probe weights the logits are Hugging Face's, to {gap:.0e} in float64"
    return (
        f"not proved: with probe weights the logits differ from Hugging Face's by {gap:.1g} of the largest. The map "
        "may be right and the model not be GPT-2: `pytest verifications/` shows where, and `gpt-harness faults --list` "
        "which differences have a name, by which they can be declared"
    )


def _own_widths(size: Size) -> Iterator[str]:
    """Yield the widths of a subject that are not GPT-2's."""
    if size.hidden:
        yield f"its feed-forward layer is {size.hidden:,} wide, GPT-2's {4 * size.width:,}"
    if size.gated:
        yield "its feed-forward layer has a gate, GPT-2's has none"
    if size.key_value_heads:
        yield f"its keys and values have {size.key_value_heads} heads, GPT-2's {size.heads}"


def _fold_layers(weights: WeightMap, own: dict[str, nn.Parameter], size: Size) -> list[dict[str, str]]:
    """Return a row for each group of parameters that differ only in the number of the layer."""
    groups: dict[tuple[str, ...], list[MappedWeight]] = {}
    for row in weights.rows:
        shape = "x".join(map(str, own[row.own].shape))
        key = (re.sub(r"\d+", "#", row.own), shape, _published(row, size), _layout(row), row.evidence)
        groups.setdefault(key, []).append(row)
    return [
        {"own": _range([row.own for row in rows]), "shape": shape, "published": published, "as": layout, "by": how}
        for (_, shape, published, layout, how), rows in groups.items()
    ]


def _published(row: MappedWeight, size: Size) -> str:
    """Return the published name without the layer, and the part of the fused projection: queries, keys, one head."""
    name = family(row.published)
    if row.part is None:
        return name
    (start, stop), D = row.part, size.head_width
    if "c_attn" not in name:
        return f"{name}, head {start // D}" if stop - start == D else f"{name}[{start}:{stop}]"
    edges = size.third_edges
    thirds = [n for n in range(3) if start < edges[n + 1] and edges[n] < stop]
    words = "".join("qkv"[third] for third in thirds)
    is_head = stop - start == D < edges[thirds[0] + 1] - edges[thirds[0]]
    return f"{name}, {words}{f' of head {(start - edges[thirds[0]]) // D}' if is_head else ''}"


def _layout(row: MappedWeight) -> str:
    if row.layout is not None:
        view = "" if row.layout.view is None else f" of {'x'.join(map(str, row.layout.view))}"
        cut = "" if all(entry is None for entry in row.layout.index) else " a piece,"
        return f"{cut} axes {','.join(map(str, row.layout.axes))}{view}".strip()
    return "transposed" if row.transposed else "as it is"


def _range(names: list[str]) -> str:
    """Return the names as one: `h.0.w`, `h.1.w`, `h.2.w` -> `h.{0..2}.w`."""
    words = [re.split(r"(\d+)", name) for name in names]
    folded = []
    for column in zip(*words, strict=True):
        values = list(dict.fromkeys(column))
        folded.append(values[0] if len(values) == 1 else f"{{{values[0]}..{values[-1]}}}")
    return "".join(folded)
