"""The gradients of the recorded batches, computed again after the run: in the model's own precision and in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.subjects.float32_as_float64 import Float32AsFloat64
from harness.training.child.model_names import first_tensor, unwrapped
from harness.training.child.passes import Pass
from harness.training.child.recorder import Recorder
from harness.training.events import IGNORED
from harness.training.optimizer_steps import Step
from harness.training.recording import Recording
from harness.training.recording_files import RecordingReader

# Relative: a replayed loss that differs by more is that of another batch, or of another mask of dropout. CPUs draw the
# same masks for float32 and float64.
SAME_LOSS = 1e-4
SAME_LOSS_OF_16_BITS = 0.01
MOST_MICRO_BATCHES = 8  # of a step whose parts of the gradient are kept one by one


class CannotReplay(Exception):  # noqa: N818 - says what is missing
    """The recorded passes cannot be computed again; the message says why."""


def replay(recorder: Recorder, passes: Iterable[Pass], reader: RecordingReader) -> None:
    """Write the gradients of each step's mean loss, or why there are none.

    The run is over: the model itself is used, in both types one after the other, and not restored.
    """
    steps = [event for event in reader.events() if isinstance(event, Step) and "before" in event.tensors]
    recording = Recording(program="", rehearsal="", ended="finished", events=reader.events())
    own = {forward.order for step in steps for forward in recording.forwards_of(step.number)}
    by_step: dict[int, list[Pass]] = {}
    for each in passes:
        if each.order in own:
            by_step.setdefault(each.step, []).append(each)
    model, found = recorder.names.model, dict[int, dict[str, Any]]()
    if model is None:
        _write(recorder, steps, found, "the program trains no torch.nn.Module")
        return
    try:
        for part, dtype in (("replayed32", None), ("replayed", torch.float64)):
            if dtype is not None:
                model.to(dtype)
            for step in steps:
                parts = _gradients(model, step, by_step.get(step.number, []), dtype)
                found.setdefault(step.number, {})[part] = _total(parts)
                if dtype is not None and 1 < len(parts) <= MOST_MICRO_BATCHES:
                    found[step.number]["micro_batches"] = {str(k): each for k, each in parts.items()}
    except CannotReplay as reason:
        _write(recorder, steps, {}, str(reason))
    except Exception as error:  # the program's own model fails outside of the program
        _write(recorder, steps, {}, f"the model cannot be called again after the run ({type(error).__name__}: {error})")
    else:
        _write(recorder, steps, found, "")
        for each in by_step[max(by_step)][:1] if by_step else ():
            _look_ahead(recorder, each)


def _look_ahead(recorder: Recorder, each: Pass) -> None:
    """Write by how much the logits of a pass change with the token ids of its second half, which come later.

    Nothing is written if it cannot be computed: its rows are one token, or the model takes no other ids.
    """
    half = each.ids.size(1) // 2
    other = each.ids.clone()
    other[:, half:] = other[:, half:].roll(1, dims=0).roll(1, dims=1)
    try:
        found = [_rows(each, torch.float64, ids=ids, training=False) for ids in (each.ids, other)]
    except Exception:  # the program's own model, called in another way
        return
    by_position = [rows.detach().view(*each.targets.shape, -1)[:, :half] for rows in found]
    if half and not torch.equal(other, each.ids):
        first, second = by_position
        change = float((first - second).abs().max() / first.abs().max())
        recorder.event("LookAhead", change=change, line=each.line)


def _write(recorder: Recorder, steps: Iterable[Step], found: Mapping[int, Any], because: str) -> None:
    for step in steps:
        row = {"number": step.number, "tensors": found.get(step.number, {}), "because": because}
        recorder.writer.event("replayed", row)


def _total(parts: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the sum of the gradients of a step's micro-batches, by parameter."""
    total: dict[str, Tensor] = {}
    for part in parts.values():
        for name, gradient in part.items():
            total[name] = total[name] + gradient if name in total else gradient
    return total


def _gradients(
    model: nn.Module, step: Step, passes: list[Pass], dtype: torch.dtype | None
) -> dict[int, dict[str, Tensor]]:
    """Return each micro-batch's part of the gradient of the mean cross entropy over all targets of a step.

    The parts are by the number of the micro-batch, then by parameter; one without targets has none.
    """
    counts = [int((each.targets != IGNORED).sum()) for each in passes]
    if not sum(counts):
        raise CannotReplay(f"no loss with a backward pass was seen before step {step.number}")
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in step.at_gradient.items():
            if name not in named:
                raise CannotReplay(f"the optimizer updates {name}")
            named[name].copy_(value)
    wanted = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    found: dict[int, dict[str, Tensor]] = {}
    for number, (each, count) in enumerate(zip(passes, counts, strict=True)):
        if not count:
            continue
        loss = _loss_sum(each, dtype)
        _check_loss(each, float(loss.detach()) / count, _tolerance(each, step))
        parts = torch.autograd.grad(loss / sum(counts), list(wanted.values()), allow_unused=True)
        found[number] = {name: part for name, part in zip(wanted, parts, strict=True) if part is not None}
    return found


def _tolerance(each: Pass, step: Step) -> float:
    """Return the relative difference that rounding explains between the losses of a pass and of its replay."""
    kinds = {tensor.dtype for tensor in step.before.values()} | {getattr(torch, each.logits_dtype)}
    sixteen_bits = each.autocast is not None or any(kind.itemsize < 4 for kind in kinds)
    return SAME_LOSS_OF_16_BITS if sixteen_bits else SAME_LOSS


def _check_loss(each: Pass, mean: float, tolerance: float) -> None:
    """Raise CannotReplay if a pass that is computed again has another loss."""
    counted = int((each.targets != IGNORED).sum())
    recorded = each.loss / counted if each.reduction == "sum" else each.loss
    if not abs(mean - recorded) <= tolerance * max(abs(recorded), 1e-2):
        raise CannotReplay(
            f"a batch of step {each.step} has the loss {mean:.6g} when it is computed again, not {recorded:.6g}"
        )


def _loss_sum(each: Pass, dtype: torch.dtype | None) -> Tensor:
    """Return the sum of the cross entropies of one pass, computed by the program's own model."""
    rows = _rows(each, dtype)
    flat = each.targets.reshape(-1).to(rows.device)
    kwargs: dict[str, Any] = {"ignore_index": IGNORED, "reduction": "sum"}
    if each.log_probabilities and each.loss_inside:
        return F.nll_loss(rows, flat, **kwargs)
    return F.cross_entropy(rows, flat, label_smoothing=each.label_smoothing, **kwargs)


def _rows(each: Pass, dtype: torch.dtype | None, *, ids: Tensor | None = None, training: bool | None = None) -> Tensor:
    """Return the logits (N, V) of the targets of one pass; with other token ids, or in another mode, if given."""
    if each.root is None:
        raise CannotReplay("the program calls the parts of its model one by one")
    root = unwrapped(each.root)  # ranks that replay do not talk to each other
    for module in root.modules() if each.mode != "mixed" else ():
        module.training = each.mode == "train" if training is None else training
    torch.set_rng_state(each.rng_state)
    args, kwargs = each.arguments if ids is None else _with_ids(each, ids)
    mode = _ReplayMode(each)
    with _precision(each, dtype), mode, torch.enable_grad():
        output = root(*args, **kwargs)
    logits = mode.logits if each.loss_inside else first_tensor(output, dims=2)
    if logits is None:
        raise CannotReplay("the model returns no logits")
    return _of_targets(each, logits)


def _with_ids(each: Pass, ids: Tensor) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return the arguments of a pass with other token ids. Raises CannotReplay if they are none of them."""

    def other(value: Any) -> Any:
        same = isinstance(value, Tensor) and value.shape == ids.shape and not value.is_floating_point()
        return ids.to(value) if same and torch.equal(value.cpu().long(), each.ids) else value

    args, kwargs = each.arguments
    own = [*args, *kwargs.values()]
    changed = [other(value) for value in own]
    if all(one is two for one, two in zip(own, changed, strict=True)):
        raise CannotReplay("the model is not called with the token ids")
    return tuple(changed[: len(args)]), dict(zip(kwargs, changed[len(args) :], strict=True))


def _of_targets(each: Pass, logits: Tensor) -> Tensor:
    """Return the logits (N, V) of the targets, of those that the loss function got, or that the model returned."""
    targets = each.targets
    if each.loss_inside and not each.is_own:
        rows = logits.movedim(1, -1).reshape(-1, logits.size(1))  # (N, V), or (B, V, T): the loss's own convention
    else:
        rows = logits.reshape(-1, logits.size(-1))
        if len(rows) != targets.numel() and logits.dim() == 3 and len(logits) == len(targets):
            rows = logits[:, : targets.size(1)].reshape(-1, logits.size(-1))  # shifted: the last logits have no target
    if len(rows) != targets.numel():
        raise CannotReplay(f"the model returns {tuple(logits.shape)} logits for {targets.numel()} targets")
    return rows


# What a loss that a program writes itself picks the scores of targets with.
PICKS = (torch.gather, Tensor.gather, torch.take_along_dim, Tensor.take_along_dim, Tensor.__getitem__)


@contextlib.contextmanager
def _precision(each: Pass, dtype: torch.dtype | None) -> Iterator[None]:
    """Compute as the pass did: in its autocast; or, for float64, without float32 anywhere."""
    if dtype is not None:
        with Float32AsFloat64():
            yield
    elif each.autocast is not None:
        with torch.autocast("cpu", dtype=getattr(torch, each.autocast)):
            yield
    else:
        yield


class _ReplayMode(TorchFunctionMode):
    """Catches the input of the loss inside the model."""

    def __init__(self, each: Pass) -> None:
        super().__init__()
        self.wanted = each
        self.logits: Tensor | None = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        result = function(*args, **options)
        if self.logits is not None:
            return result
        if self.wanted.is_own:
            picks = function in PICKS and isinstance(result, Tensor) and result.numel() == self.wanted.targets.numel()
            self.logits = args[0] if picks else None
        elif function in (F.cross_entropy, F.nll_loss):
            self.logits = args[0] if args else options["input"]
        return result
