"""Measures of structure: how many parameters, tied or not, under which names, in which shapes."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.core.devices import CPU
from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.oracle import closed_forms
from harness.oracle.probe_weights import Weights, state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.subjects.weight_map import family, published_shapes
from harness.suites.measure_registry import Reading, measure


@measure
def parameter_count(subject: Subject, *, size: str, tied: bool = True) -> Reading:
    """Count the parameters of the model, each once; on the meta device, so that every size fits into memory."""
    model = _on_meta(subject, size, **({} if tied else {"tied": False}))
    count = sum(parameter.numel() for parameter in model.module.parameters())
    details: dict[str, Any] = {"components": _by_child(model.module)}
    if (cause := closed_forms.cause_of_count(SIZES[size], count)) is not None:
        details["hint"] = f"as many as with {cause}"  # another change may give the same number
    return Reading(count, "parameters", details)


@measure
def parameters_by_component(subject: Subject, *, size: str) -> Reading:
    """Return the number of parameters minus GPT-2's, for each family of weights over all layers."""
    model = _on_meta(subject, size)
    found: Counter[str] = Counter()
    for name, tensor in model.published_state().items():
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
    """Count the distinct storages of (vocabulary, width) matrices: one if head and embedding are tied.

    Compared by `data_ptr`, after an operation that is known to break the tie.
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
    pointers = {
        name: tensor.data_ptr()
        for name, tensor in module.named_parameters(remove_duplicate=False)
        if tuple(tensor.shape) in (shape, shape[::-1])
    }
    count, names = len(set(pointers.values())), " and ".join(sorted(pointers))
    return Reading(
        count,
        "matrices of (vocabulary, width)",
        {"holders": sorted(pointers), "hint": f"{names} are {count} tensors, not one" if count > 1 else ""},
    )


# A subject that has fewer of the published names has a naming of its own: a whole family of weights has another name.
PUBLISHED_NAMES_FRACTION = 0.9


@measure
def published_names_differing(subject: Subject, *, size: str) -> Reading:
    """Count the parameter names that are in only one of two state dicts: the subject's and Hugging Face's GPT-2's.

    Buffers do not count, because older checkpoints contain masks, nor does a tied head that has no name of its own.
    Raises MissingAbility if the subject uses other names throughout.
    """
    module = _on_meta(subject, size).module
    own = {name for name in module.state_dict() if name not in dict(module.named_buffers())}
    published = {*published_shapes(SIZES[size]), "lm_head.weight"}
    bare = {key.removeprefix("transformer.") for key in published}
    wanted = published if len(own & published) >= len(own & bare) else bare
    if len(own & wanted) < PUBLISHED_NAMES_FRACTION * len(wanted):
        raise MissingAbility(f"{subject.name} uses other parameter names than Hugging Face ({sorted(own)[0]}, ...)")
    vocabularies = [p for p in module.parameters() if p.shape == (SIZES[size].vocab_size, SIZES[size].width)]
    if len(vocabularies) == 1:
        own |= {"lm_head.weight"}
    differing = sorted(own ^ wanted)
    return Reading(len(differing), "names", {"names": differing, "hint": ", ".join(differing[:6])})


@measure
def tensors_left_behind(subject: Subject, *, size: str) -> Reading:
    """Count the tensors that a module stores but does not register: `.to(device)` and `state_dict` miss them."""
    model = subject.build(SIZES[size])
    registered = {id(t) for t in (*model.module.parameters(), *model.module.buffers())}
    left = [
        f"{path or 'model'}.{name}"
        for path, module in model.module.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and _has_unregistered_tensor(value, registered)
    ]
    return Reading(len(left), "tensors", {"names": left, "hint": ", ".join(left[:6])})


@measure
def buffers_that_train(subject: Subject, *, size: str) -> Reading:
    """Count the buffers that require a gradient, and the (context, context) masks that are parameters."""
    model = subject.build(SIZES[size])
    context = SIZES[size].context
    strange = [name for name, buffer in model.module.named_buffers() if buffer.requires_grad]
    # A mask has two values; a table of relative positions has the same shape, and is trained on purpose.
    strange += [
        name
        for name, p in model.module.named_parameters()
        if tuple(p.shape[-2:]) == (context, context) and p.unique().numel() == 2
    ]
    return Reading(len(strange), "buffers", {"hint": ", ".join(strange[:6])})


@measure
def boundary_shapes(subject: Subject, *, size: str, rows: int = 2, length: int = 24) -> Reading:
    """Return True for each component whose output is (B, T, C), and for logits of (B, T, V)."""
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
    """Return "refused" if one token more than the context raises an error, or else "no error"."""
    model = subject.build(SIZES[size], device=CPU)  # after an index error in a kernel of CUDA the process has no CUDA
    ids, _ = batch(SIZES[size], "random", rows=1, length=SIZES[size].context + 1)
    try:
        with torch.no_grad():
            model.unchecked_call(ids)  # not `logits`, which raises an error itself
    except Exception as error:
        return Reading("refused", details={"error": f"{type(error).__name__}: {error}"})
    return Reading("no error")


@measure
def cropped_context(subject: Subject, *, size: str, weights: Weights = "probe") -> Reading:
    """Return True if a model with half its context, by `crop_block_size`, answers as before and refuses more tokens."""
    model = build_with_weights(subject, SIZES[size], state(size, weights), device=CPU)  # see above
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
            model.unchecked_call(ids)
            found["what no longer fits is refused"] = False
        except Exception:
            found["what no longer fits is refused"] = True
    return Reading(found)


def _on_meta(subject: Subject, size: str, **options: Any) -> Model:
    """Build the subject on the meta device, or on the CPU if that fails and the size is at most 124M.

    Raises MissingAbility for a larger size that does not build on the meta device.
    """
    try:
        return subject.build(SIZES[size], device="meta", **options)
    except (NotImplementedError, RuntimeError) as error:
        if SIZES[size].width > SIZES["124M"].width:
            raise MissingAbility(
                f"{subject.name} does not build on the meta device ({error}), and is too big to build"
            ) from error
        return subject.build(SIZES[size], **options)


def _by_child(module: nn.Module) -> dict[str, int]:
    """Count the parameters of each child module (of `transformer`, if there is one), shared ones once."""
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


def _has_unregistered_tensor(value: Any, registered: set[int]) -> bool:
    values = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else [value]
    return any(
        (isinstance(item, Tensor) and id(item) not in registered)
        or (isinstance(item, nn.Module) and any(id(p) not in registered for p in item.parameters()))
        for item in values
    )
