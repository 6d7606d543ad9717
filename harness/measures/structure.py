"""Measures of structure: how many parameters, tied or not, under which names, in which shapes."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.oracle import closed_forms, noise_verdict
from harness.oracle.probe_weights import Weights, state
from harness.oracle.tokens import batch
from harness.subjects.model import Model, Subject, build_with_weights
from harness.subjects.weight_map import family, published_shapes
from harness.suites.measure_registry import Reading, measure


@measure
def parameter_count(subject: Subject, *, size: str, tied: bool = True) -> Reading:
    """How many parameters the model has, each counted once; on the meta device, so that no size is too big."""
    model = _on_meta(subject, size, **({} if tied else {"tied": False}))
    count = sum(parameter.numel() for parameter in model.module.parameters())
    details: dict[str, Any] = {"components": _by_child(model.module)}
    if (cause := closed_forms.cause_of_count(SIZES[size], count)) is not None:
        details["hint"] = cause
    return Reading(count, "parameters", details)


@measure
def parameters_by_component(subject: Subject, *, size: str) -> Reading:
    """Parameters beyond (or short of) GPT-2's, for each family of weights over all layers."""
    model = _on_meta(subject, size)
    found: Counter[str] = Counter()
    for name, tensor in model.weights.read(dict(model.module.named_parameters())).items():
        found[family(name)] += tensor.numel()
    wanted: Counter[str] = Counter()
    for name, shape in published_shapes(SIZES[size]).items():
        wanted[family(name)] += torch.Size(shape).numel()
    excess = {name: found[name] - wanted[name] for name in {**wanted, **found}}
    return Reading(excess, "parameters", {"components": dict(found)})


@measure
def head_storages(
    subject: Subject,
    *,
    size: str,
    after: Literal["construction", "load_state_dict", "deepcopy", "to_dtype", "training_step"],
) -> Reading:
    """How many distinct memory blocks hold a (vocabulary, width) matrix: one when head and embedding are tied.

    Compared by `data_ptr`, after something that is known to break the tie.
    """
    model = subject.build(SIZES[size])
    module = model.module
    if after == "load_state_dict":
        module.load_state_dict(module.state_dict())
    elif after == "deepcopy":
        module = copy.deepcopy(module)
    elif after == "to_dtype":
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            module = module.to(dtype)
    elif after == "training_step":
        _training_step(model)
    shape = (SIZES[size].vocab_size, SIZES[size].width)
    holders = {
        name: tensor.data_ptr()
        for name, tensor in module.named_parameters(remove_duplicate=False)
        if tuple(tensor.shape) in (shape, shape[::-1])
    }
    count, names = len(set(holders.values())), " and ".join(sorted(holders))
    return Reading(
        count,
        "matrices of (vocabulary, width)",
        {"holders": sorted(holders), "hint": f"{names} are {count} tensors, not one" if count > 1 else ""},
    )


SPEAKS = 0.9  # of the published names: with a family that goes by another name, the names are the subject's own


@measure
def published_names_differing(subject: Subject, *, size: str) -> Reading:
    """State-dict keys of parameters that Hugging Face's GPT-2 has and the subject lacks, or the other way round.

    Buffers do not count (older checkpoints have masks), nor a head that is the embedding under no name of its own. A
    skip for a subject that goes by names of its own.
    """
    module = _on_meta(subject, size).module
    own = {name for name in module.state_dict() if name not in dict(module.named_buffers())}
    published = {*published_shapes(SIZES[size]), "lm_head.weight"}
    bare = {key.removeprefix("transformer.") for key in published}
    wanted = published if len(own & published) >= len(own & bare) else bare
    if len(own & wanted) < SPEAKS * len(wanted):
        raise MissingAbility(f"{subject.name} goes by parameter names of its own ({sorted(own)[0]}, ...)")
    vocabularies = [p for p in module.parameters() if p.shape == (SIZES[size].vocab_size, SIZES[size].width)]
    if len(vocabularies) == 1:
        own |= {"lm_head.weight"}
    differing = sorted(own ^ wanted)
    return Reading(len(differing), "names", {"names": differing, "hint": ", ".join(differing[:6])})


@measure
def tensors_left_behind(subject: Subject, *, size: str) -> Reading:
    """Tensors that a module keeps but does not register: `.to(device)` and `state_dict` would pass them by."""
    model = subject.build(SIZES[size])
    registered = {id(t) for t in (*model.module.parameters(), *model.module.buffers())}
    left = [
        f"{path or 'model'}.{name}"
        for path, module in model.module.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and _holds_stranger(value, registered)
    ]
    return Reading(len(left), "tensors", {"names": left, "hint": ", ".join(left[:6])})


@measure
def buffers_that_train(subject: Subject, *, size: str) -> Reading:
    """Buffers that require a gradient, and square (context, context) masks that are parameters."""
    model = subject.build(SIZES[size])
    context = SIZES[size].context
    strange = [name for name, buffer in model.module.named_buffers() if buffer.requires_grad]
    strange += [name for name, p in model.module.named_parameters() if tuple(p.shape[-2:]) == (context, context)]
    return Reading(len(strange), "buffers", {"hint": ", ".join(strange[:6])})


@measure
def boundary_shapes(subject: Subject, *, size: str, rows: int = 2, length: int = 24) -> Reading:
    """Whether each component's output has batch, time and width, and the logits are (batch, time, vocabulary)."""
    model = subject.build(SIZES[size])
    ids, _ = batch(SIZES[size], "random", rows=rows, length=length)
    answered: dict[str, Tensor] = {}
    components = {name.removeprefix("transformer."): name for name in _components(SIZES[size].layers)}
    with torch.no_grad(), model.watched(components, answered=answered):
        answered["logits"] = model.logits(ids)
    found = {name: tuple(tensor.shape) for name, tensor in answered.items()}
    wanted = {name: (rows, length, SIZES[size].width) for name in found if name != "logits"}
    wanted["logits"] = (rows, length, SIZES[size].vocab_size)
    return Reading(
        {name: found[name] == wanted[name] for name in wanted},
        details={"shapes": {k: str(v) for k, v in found.items()}},
    )


@measure
def answer_to_a_long_sequence(subject: Subject, *, size: str) -> Reading:
    """What one token too many gives: 'refused', by whatever error, or 'no error'; the details tell the error."""
    model = subject.build(SIZES[size])
    ids, _ = batch(SIZES[size], "random", rows=1, length=SIZES[size].context + 1)
    try:
        with torch.no_grad():
            model.calling(model.module, ids, None)  # not `logits`, which has an error of its own to raise
    except Exception as error:
        return Reading("refused", details={"error": f"{type(error).__name__}: {error}"})
    return Reading("no error")


@measure
def cropped_context(subject: Subject, *, size: str, weights: Weights = "probe") -> Reading:
    """Whether a model whose own `crop_block_size` has halved its context answers as before, and refuses more."""
    model = build_with_weights(subject, SIZES[size], state(size, weights))
    if not callable(getattr(model.module, "crop_block_size", None)):
        raise MissingAbility(f"{subject.name} has no crop_block_size")
    module: Any = model.module
    half = SIZES[size].context // 2
    ids, _ = batch(SIZES[size], "random", rows=2, length=half + 1)
    with torch.no_grad():
        before = model.logits(ids[:, :half])
        module.crop_block_size(half)
        found = {"the same answer to what fits": torch.equal(model.logits(ids[:, :half]), before)}
        try:
            model.calling(module, ids, None)
            found["what no longer fits is refused"] = False
        except Exception:
            found["what no longer fits is refused"] = True
    return Reading(found)


@measure
def forward_changes(subject: Subject, *, size: str, weights: Weights = "probe", dropout: float = 0.1) -> Reading:
    """What an eval forward pass changes that it must not: its own answer the second time, its input, its state."""
    try:
        model = build_with_weights(subject, SIZES[size], state(size, weights), dropout=dropout)
    except MissingAbility:  # no dropout, or no weight map: judged at its own start
        model = subject.build(SIZES[size])
    ids, _ = batch(SIZES[size], "random", rows=2, length=min(24, SIZES[size].context))
    given, before = ids.clone(), {name: t.clone() for name, t in model.module.state_dict().items()}
    with torch.no_grad():
        first, second = model.logits(ids), model.logits(ids)
    after = model.module.state_dict()
    return Reading(
        {
            "the answer, run twice": not torch.equal(first, second),
            "the input ids": not torch.equal(ids, given),
            "the state dict": any(not torch.equal(tensor, after[name]) for name, tensor in before.items()),
            "the training flag": model.module.training,
        }
    )


@measure
def training_against_evaluation(subject: Subject, *, size: str, weights: Weights = "probe") -> Reading:
    """How far training mode without dropout is from eval mode, in float64: the loss, and every gradient by family."""
    model = build_with_weights(subject, SIZES[size], state(size, weights), "float64", dropout=0.0)
    ids, targets = batch(SIZES[size], "random", rows=2, length=24)
    losses, gradients = [], []
    for training in (False, True):
        model.module.train(training)
        model.module.zero_grad(set_to_none=True)
        loss = model.loss(ids, targets)
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: tensor.clone() for name, tensor in model.gradients().items()})
    found = {"loss": noise_verdict.distance(losses[1], losses[0]) / float(losses[0])}
    for name, expected in gradients[0].items():
        gap = noise_verdict.distance(gradients[1][name], expected) / max(noise_verdict.largest(expected), 1e-300)
        found[family(name)] = noise_verdict.worst(gap, found.get(family(name), 0.0))
    return Reading(found, "relative")


@measure
def dropout_sites(subject: Subject, *, size: str, rate: float = 0.1) -> Reading:
    """Dropouts of that rate in one training pass, over GPT-2's: the embeddings' sum, and three a block.

    Counted where they happen: torch's dropout functions, and the dropout of its fused attention.
    """
    model = subject.build(SIZES[size], dropout=rate)
    ids, _ = batch(SIZES[size], "random", rows=2, length=24)
    model.module.train()
    with _CountedDropouts(heads=SIZES[size].heads) as counted, torch.no_grad():
        model.logits_and_loss(ids, ids)  # one pass, where `logits` of nanoGPT's style may need two
    if not counted.rates:
        raise MissingAbility(f"{subject.name} drops nothing in training mode: it has no dropout, or none of torch's")
    sites = {f"rate {found:g}": round(count) for found, count in sorted(counted.rates.items())}
    wanted = 1 + 3 * SIZES[size].layers
    hint = f"{sum(sites.values())} dropouts in a training pass, GPT-2 has {wanted}: {sites}"
    return Reading(round(counted.rates[rate]) - wanted, "dropouts beyond GPT-2's", {"found": sites, "hint": hint})


class _CountedDropouts(TorchFunctionMode):
    """While open, counts calls that drop something, by rate; those of single heads, (B, T, T), together."""

    def __init__(self, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.rates: defaultdict[float, float] = defaultdict(float)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        rate = 0.0
        if function in (torch.nn.functional.dropout, torch.dropout, torch.dropout_):
            names = ("input", "p", "training" if function is torch.nn.functional.dropout else "train")
            bound = {"p": 0.5, "training": True, "train": True, **dict(zip(names, args, strict=False)), **given}
            rate = bound["p"] if bound["training"] and bound["train"] else 0.0
        elif function is torch.nn.functional.scaled_dot_product_attention:
            rate = given.get("dropout_p", args[4] if len(args) > 4 else 0.0)
        elif function is torch.nn.functional.multi_head_attention_forward and given.get("training", True):
            rate = given.get("dropout_p", args[10] if len(args) > 10 else 0.0)
        if rate:
            shape = args[0].shape if args else (given["input"] if "input" in given else given["query"]).shape
            dropout = function is not torch.nn.functional.multi_head_attention_forward
            of_one_head = dropout and len(shape) == 3 and shape[1] == shape[2]
            self.rates[rate] += 1 / self.heads if of_one_head else 1
        return function(*args, **given)


def _on_meta(subject: Subject, size: str, **options: Any) -> Model:
    """The subject without its numbers; built in earnest where it cannot do without, if it is not too big."""
    try:
        return subject.build(SIZES[size], device="meta", **options)
    except (NotImplementedError, RuntimeError) as error:
        if SIZES[size].width > SIZES["124M"].width:
            raise MissingAbility(
                f"{subject.name} does not build on the meta device ({error}), and is too big to build"
            ) from error
        return subject.build(SIZES[size], **options)


def _by_child(module: nn.Module) -> dict[str, int]:
    """Parameters of each top-level part (of `transformer`, where that holds them), shared ones counted once."""
    parts: dict[str, int] = {}
    seen: set[int] = set()
    for name, parameter in module.named_parameters():
        words = [word for word in name.split(".") if word != "transformer"]
        if id(parameter) not in seen:
            parts[words[0]] = parts.get(words[0], 0) + parameter.numel()
        seen.add(id(parameter))
    return parts


def _training_step(model: Model) -> None:
    ids, targets = batch(model.size, "random", rows=2, length=min(24, model.size.context))
    model.module.train()
    optimizer = torch.optim.SGD(model.module.parameters(), lr=0.1)
    model.loss(ids, targets).backward()
    optimizer.step()


def _components(layers: int) -> list[str]:
    parts = ("ln_1", "attn", "ln_2", "mlp")
    blocks = [f"transformer.h.{layer}{part}" for layer in range(layers) for part in (*(f".{p}" for p in parts), "")]
    return [*blocks, "transformer.ln_f"]


def _holds_stranger(value: Any, registered: set[int]) -> bool:
    values = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else [value]
    return any(
        (isinstance(item, Tensor) and id(item) not in registered)
        or (isinstance(item, nn.Module) and any(id(p) not in registered for p in item.parameters()))
        for item in values
    )
