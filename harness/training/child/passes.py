"""Forward passes, put together from what the seams see: the model's call, its token ids, and the loss."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.training.child.model_names import first_tensor
from harness.training.child.recorder import Recorder, as_int64
from harness.training.child.seams.tensor_lines import TensorLines
from harness.training.child.user_lines import outer_line
from harness.training.events import IGNORED
from harness.training.recording_files import digests

RECORDED = (
    *("step", "phase", "ids", "targets", "loss", "reduction", "label_smoothing", "unsmoothed", "mode"),
    *(
        "autocast",
        "logits_dtype",
        "loss_dtype",
        "rng",
        "used",
        "line",
        "ids_line",
        "targets_line",
        "loss_line",
        "mode_line",
    ),
    "weights",
    "outer_line",
    "drawn_line",
)  # the attributes of a pass that a Forward event has
NEAR_THE_ROOT = 500  # nodes of the autograd graph between a loss and what is differentiated (scaling, sums)
MOST_WAITING = 64  # passes with a loss and without a backward pass; each keeps its graph alive
EMPTY = torch.empty(0, 0, dtype=torch.int64)


@dataclass
class Pass:
    """A forward pass while it is being observed. It becomes a `Forward` event.

    `root` is the outermost module that was called, with `arguments`; None if the program calls the parts one by one.
    """

    order: int
    step: int
    phase: str
    mode: str
    autocast: str | None
    rng: str
    rng_state: Tensor
    line: str
    outer_line: str = ""
    drawn_line: str = ""
    ids_line: str = ""
    targets_line: str = ""
    loss_line: str = ""
    mode_line: str = ""
    weights: tuple[str, ...] = ()
    root: nn.Module | None = None
    arguments: tuple[Any, Mapping[str, Any]] = ((), {})
    ids: Tensor = EMPTY
    targets: Tensor = EMPTY
    loss: float = math.nan
    reduction: str = "mean"
    label_smoothing: float = 0.0
    unsmoothed: float = math.nan
    logits_dtype: str = ""
    loss_dtype: str = "float32"
    used: bool = False
    node: Any = None
    """The loss in the autograd graph."""
    has_loss: bool = False
    loss_inside: bool = False
    """The loss was computed inside the model's call."""
    log_probabilities: bool = False
    """The loss was computed from log probabilities, by `nll_loss` or by the program itself."""
    is_own: bool = False
    """The program writes its loss itself: `loss` is the mean cross entropy of its targets."""
    loss_of_each: Tensor = EMPTY
    """The cross entropy of each target, for a loss that is the program's own."""
    output: Tensor | None = None
    """The logits that the model returned, until a loss is seen."""
    each: Tensor | None = None
    """What the loss has of each target, if it is more than one number: the program does the reduction."""
    written: bool = False

    def row(self) -> dict[str, Any]:
        """Return what a `Forward` event has."""
        return {name: getattr(self, name) for name in RECORDED}


class Passes:
    """Observes forward passes, and keeps those that a replay needs."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.lines = TensorLines(lambda: (recorder.line(), outer_line()))
        self.mode_line = ""
        """The user's line that set the mode of the model, or of a part of it, last."""
        self.training: list[Pass] = []
        """Passes with a backward pass, in order, for the replay."""
        self._entry: Pass | None = None  # the call of the model that is being executed
        self._depth = 0
        self._open: Pass | None = None  # the last pass, which may get a loss yet
        self._waiting: list[Pass] = []  # passes with a loss that a backward pass may use yet
        self._uncounted = IGNORED  # a token that the program leaves out of its own reduction as a target

    # ------------------------------------------------------------------------ the model's call

    def is_inner(self, module: nn.Module) -> bool:
        """Return True for a part of the model in its call, which needs no more attention."""
        return self._entry is not None and module is not self._entry.root

    def enter(self, module: nn.Module) -> None:
        """Note that a module is called."""
        if self._entry is None:
            if any(True for _ in module.parameters()):
                self.recorder.names.called(module)
                self._entry, self._depth = self._new(module), 1
        elif module is self._entry.root:
            self._depth += 1

    def leave(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: object) -> None:
        """Note that a module returns; `output` is None if it raised."""
        entry = self._entry
        if entry is None or module is not entry.root:
            return
        self._depth -= 1
        if self._depth == 0:
            self._entry = None
            entry.arguments = (_copied(tuple(args)), _copied(dict(kwargs)))
            logits = first_tensor(output, dims=2)
            if logits is not None and not entry.logits_dtype:
                entry.logits_dtype = _name(logits.dtype)
                entry.output = None if entry.has_loss else logits

    def saw_ids(self, ids: Tensor) -> bool:
        """Note the indices of an embedding, and return True for token ids: of two dimensions, and not all positions."""
        if ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
            return False
        entry = self._entry or self._new(None)
        if entry.ids.numel() and not _are_positions(entry.ids):
            return False
        if self._open is not entry:
            self._close()
            self._open = entry
        entry.ids, entry.ids_line, entry.drawn_line = as_int64(ids), self.lines.of(ids), self.lines.outer_of(ids)
        return not _are_positions(entry.ids)

    # ------------------------------------------------------------------------ the loss

    def saw_loss(self, logits: Tensor, targets: Tensor, options: Mapping[str, Any], result: Tensor) -> None:
        """Note a loss: it belongs to the last pass, unless that has one."""
        entry = self._open
        if entry is None or (entry.has_loss and not entry.is_own) or targets.is_floating_point():
            return
        entry.is_own = False  # scores that the program picked before are not its loss
        ignored = options.get("ignore_index", IGNORED)
        found = as_int64(targets)
        found[found == ignored] = IGNORED
        counted = found.reshape(-1) != IGNORED
        rows = len(entry.ids)
        entry.targets = found.reshape(rows, -1) if rows and found.numel() % rows == 0 else found.reshape(1, -1)
        entry.reduction = options.get("reduction") or "mean"
        entry.label_smoothing = float(options.get("label_smoothing") or 0.0)
        values = result.detach().double().reshape(-1)
        entry.loss = float(values.mean() if values.numel() == 1 else values[counted.to(values.device)].mean())
        entry.log_probabilities = bool(options.get("log_probabilities"))
        if entry.label_smoothing:
            plain = torch.nn.functional.cross_entropy(logits.detach(), targets, ignore_index=ignored)
            entry.unsmoothed = float(plain)
        self._has_loss(entry, logits, targets, result)

    def saw_own_loss(self, scores: Tensor, targets: Tensor, picked: Tensor) -> None:
        """Note that the program picks the score of each target of the last pass: a loss that it writes itself.

        `scores` (..., V) are logits or log probabilities, `targets` (...) indices of them, in the order of the rows.
        What has fewer entries than a token id needs, as the scores of experts, is no loss.
        """
        entry = self._open
        rows = 0 if entry is None else len(entry.ids)
        if entry is None or entry.has_loss or not rows or targets.numel() % rows or scores.dim() < 2:
            return
        length = targets.numel() // rows
        V = scores.size(-1)
        if not 0 < length <= entry.ids.size(1) or scores.numel() != targets.numel() * V:
            return
        if int(entry.ids.max()) >= V or int(targets.min()) < 0 or int(targets.max()) >= V:
            return
        flat = scores.detach().double().reshape(-1, V)
        logs = flat.log_softmax(-1)
        entry.log_probabilities = bool(torch.allclose(flat, logs, atol=1e-2))
        found = as_int64(targets).reshape(rows, length)
        losses = -logs.gather(-1, found.reshape(-1, 1).to(logs.device)).reshape(-1).cpu()
        found = found.masked_fill(found == self._uncounted, IGNORED)
        entry.is_own, entry.targets, entry.loss_of_each = True, found, losses.reshape(rows, length)
        entry.loss = float(losses[found.reshape(-1) != IGNORED].mean())
        self._has_loss(entry, scores, targets, picked)

    def saw_one_hot(self, targets: Tensor, result: Tensor) -> None:
        """Note targets as one-hot vectors: a loss that the program writes itself, of the logits that it was given."""
        entry = self._open
        logits = entry.output if entry is not None and not entry.has_loss else None
        if entry is not None and logits is not None and logits.shape == (*targets.shape, result.shape[-1]):
            self.saw_own_loss(logits, targets, logits)
            entry.each = None

    def _has_loss(self, entry: Pass, logits: Tensor, targets: Tensor, result: Tensor) -> None:
        entry.logits_dtype, entry.loss_dtype = _name(logits.dtype), _name(result.dtype)
        entry.targets_line, entry.loss_line = self.lines.of(targets), self.recorder.line()
        entry.node, entry.has_loss, entry.output = result.grad_fn, True, None
        entry.loss_inside = self._entry is not None
        entry.each = result if entry.phase == "train" and result.numel() > 1 else None
        if entry.phase == "eval" and entry.root is not None and not entry.weights:
            entry.weights = digests(list(entry.root.parameters()))
        waits = any(entry is each for each in self._waiting)
        if entry.phase == "train" and entry.node is not None and not waits:
            self._waiting.append(entry)
            self._write_waiting(self._waiting[:-MOST_WAITING])  # a validation without no_grad must not fill the memory

    def differentiated(self, root: object) -> None:
        """Note a backward pass from this tensor: it uses the losses that are in its graph."""
        reached = _nodes_near(getattr(root, "grad_fn", None))
        near = [entry for entry in self._waiting if any(entry.node is node for node in reached)]
        used = near or list(self._waiting)
        for entry in used:
            entry.used = True
            self._see_what_counts(entry, root)
            if self.recorder.request.replay and self.recorder.request.detail == "tensors":
                self.training.append(entry)
        self._write_waiting(used)

    def _see_what_counts(self, entry: Pass, root: object) -> None:
        """Note which targets the program leaves out of its own reduction: they have no part in `root`."""
        each, entry.each = entry.each, None
        if each is None or not isinstance(root, Tensor) or each.numel() != entry.targets.numel():
            return
        (weights,) = torch.autograd.grad(root, each, torch.ones_like(root), retain_graph=True, allow_unused=True)
        if weights is None or bool(weights.all()) or not bool(weights.any()):
            return
        left = (weights == 0).reshape(entry.targets.shape).cpu()
        out, kept = entry.targets[left].unique(), entry.targets[~left]
        if len(out) == 1 and not bool((kept == out).any()):
            self._uncounted = int(out)
        counted = ~left & (entry.targets != IGNORED)
        values = each.detach().double().reshape(entry.targets.shape).cpu()
        if entry.is_own:
            entry.loss = float((entry.loss_of_each[counted]).mean())
        else:
            entry.loss = float(values[counted].mean())
        entry.targets = entry.targets.masked_fill(left, IGNORED)

    # ------------------------------------------------------------------------ writing

    def flush(self) -> None:
        """Write every pass that is complete: before a step, and at the end."""
        self._close()
        self._write_waiting(list(self._waiting))

    def _close(self) -> None:
        entry, self._open = self._open, None
        if entry is not None and not any(entry is each for each in self._waiting):
            self._write(entry)

    def _write_waiting(self, entries: list[Pass]) -> None:
        chosen = {id(entry) for entry in entries}
        self._waiting = [entry for entry in self._waiting if id(entry) not in chosen]
        for entry in entries:
            self._write(entry)

    def _write(self, entry: Pass) -> None:
        if not entry.written:
            entry.written, entry.node, entry.each, entry.output = True, None, None, None
            self.recorder.event("Forward", order=entry.order, **entry.row())

    def _new(self, root: nn.Module | None) -> Pass:
        recorder = self.recorder
        state = torch.get_rng_state()
        return Pass(
            order=recorder.next_order(),
            step=recorder.step,
            phase="train" if recorder.grad_enabled else "eval",
            mode=_mode(root if root is not None else recorder.names.model),
            autocast=_autocast(),
            rng=recorder.rng(),
            rng_state=state,
            line=recorder.line(),
            outer_line=outer_line(),
            mode_line=self.mode_line,
            root=root,
        )


def _mode(module: nn.Module | None) -> str:
    flags = {each.training for each in module.modules()} if module is not None else set()
    return "mixed" if len(flags) > 1 else ("eval" if flags == {False} else "train")


def _autocast() -> str | None:
    for device in ("cuda", "cpu"):
        if torch.is_autocast_enabled(device):
            return _name(torch.get_autocast_dtype(device))
    return None


def _nodes_near(start: Any) -> list[Any]:
    """Return the nodes of an autograd graph next to `start`, breadth first."""
    found: dict[int, Any] = {}  # by id: they stay alive in here
    queue = deque([start])
    while queue and len(found) < NEAR_THE_ROOT:
        node = queue.popleft()
        if node is not None and id(node) not in found:
            found[id(node)] = node
            queue.extend(next_node for next_node, _ in node.next_functions)
    return list(found.values())


def _are_positions(ids: Tensor) -> bool:
    """Return True for the same positions 0, 1, 2 ... in each row: not token ids, or of no use as such."""
    return ids.numel() > 0 and bool((ids == torch.arange(ids.size(1))).all())


def _copied(value: Any) -> Any:
    """Return a call's arguments with copies of integer tensors, which a program may use again for the next batch."""
    if isinstance(value, Tensor):
        return value.detach().clone() if not value.is_floating_point() else value.detach()
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value
    if type(value) is dict:
        return {key: _copied(each) for key, each in value.items()}
    return value


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
