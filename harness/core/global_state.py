"""Process-wide state that a subject can change: compared, described and restored."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
import torch.utils._device
from torch import nn

from harness.core.devices import float32_products, set_float32_products, set_shortcuts, shortcuts
from harness.core.originals import replaced, restore_replaced
from harness.core.seeds import seed_torch


@dataclass(frozen=True)
class GlobalSetting:
    """One global setting, with the functions that read and write it."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _attention_kernels() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()


def _set_attention_kernels(enabled: Sequence[bool]) -> None:
    cuda = torch.backends.cuda
    switches = cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_math_sdp
    for switch, on in zip(switches, enabled, strict=True):
        switch(on)


def _set_deterministic(was: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(was[0], warn_only=was[1])


def _autocast() -> bool:
    return torch.is_autocast_enabled("cpu")


def _set_autocast(on: bool) -> None:
    torch.set_autocast_enabled("cpu", on)


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)


_HOOKS = nn.modules.module


def _modes() -> tuple[str, ...]:
    """Return the function modes that are on, without that of the default device."""
    modes = torch.overrides._get_current_function_mode_stack()
    return tuple(type(mode).__name__ for mode in modes if not isinstance(mode, torch.utils._device.DeviceContext))


def _leave_modes(before: Sequence[str]) -> None:
    while len(_modes()) > len(before):
        torch.overrides._pop_mode()


def _global_hooks() -> tuple[int, int]:
    return len(_HOOKS._global_forward_hooks), len(_HOOKS._global_forward_pre_hooks)


def _drop_global_hooks(before: Sequence[int]) -> None:
    registered = _HOOKS._global_forward_hooks, _HOOKS._global_forward_pre_hooks
    for hooks, count in zip(registered, before, strict=True):
        for key in list(hooks)[count:]:
            del hooks[key]


def _signals() -> dict[str, Any]:
    return {number.name: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


def _set_signals(handlers: Mapping[str, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for name, handler in handlers.items():
            if handler is not None:
                signal.signal(signal.Signals[name], handler)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


def _set_folder(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


# Settings that change the results of later checks: compared and restored around every check.
NUMERICS = (
    # First: what follows is read through a mode that is on.
    GlobalSetting("function modes", _modes, _leave_modes),
    GlobalSetting("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    GlobalSetting("the default device", torch.get_default_device, _set_device),
    GlobalSetting("gradients", torch.is_grad_enabled, torch.set_grad_enabled),
    GlobalSetting("the number of threads", torch.get_num_threads, torch.set_num_threads),
    GlobalSetting("deterministic algorithms", _deterministic, _set_deterministic),
    GlobalSetting("the precision of matrix products", float32_products, set_float32_products),
    GlobalSetting("TF32 of cuDNN and sums in 16 bits", shortcuts, set_shortcuts),
    GlobalSetting("anomaly detection", torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    GlobalSetting("autocast on the CPU", _autocast, _set_autocast),
    GlobalSetting("the attention kernels allowed", _attention_kernels, _set_attention_kernels),
    GlobalSetting("functions of torch", replaced, restore_replaced),
    GlobalSetting("hooks on every module", _global_hooks, _drop_global_hooks),
    GlobalSetting("the current folder", _folder, _set_folder),
    GlobalSetting("signal handlers", _signals, _set_signals),
    GlobalSetting("garbage collection", gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
)


def _set_environment(before: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


def _set_path(before: list[str]) -> None:
    sys.path[:] = before


def _set_filters(before: list[Any]) -> None:
    warnings.filters[:] = before  # type: ignore[index]


def _logging() -> tuple[int, int]:
    return logging.root.level, logging.root.manager.disable


def _set_logging(was: tuple[int, int]) -> None:
    logging.root.setLevel(was[0])
    logging.disable(was[1])


# Settings that an import of any library may change too: restored without being reported, and judged only where
# nothing is imported for the first time.
RESTORED_SILENTLY = (
    GlobalSetting("environment variables", lambda: dict(os.environ), _set_environment),
    GlobalSetting("the log level", _logging, _set_logging),
    GlobalSetting("warning filters", lambda: list(warnings.filters), _set_filters),
    GlobalSetting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
)
PROCESS = (*RESTORED_SILENTLY, GlobalSetting("sys.path", lambda: list(sys.path), _set_path))


def _set_torch_state(state: list[int]) -> None:
    torch.set_rng_state(torch.tensor(state, dtype=torch.uint8))


def _plain(state: Any) -> tuple[Any, ...]:
    return tuple(part.tolist() if isinstance(part, numpy.ndarray) else part for part in state)


def _torch_state() -> list[int]:
    return torch.get_rng_state().tolist()


def _numpy_state() -> tuple[Any, ...]:
    return _plain(numpy.random.get_state())


# A model may draw random numbers in training; in eval mode a forward pass has nothing to draw.
RANDOM = (
    GlobalSetting("torch's random numbers", _torch_state, _set_torch_state),
    GlobalSetting("Python's random numbers", random.getstate, random.setstate),
    GlobalSetting("numpy's random numbers", _numpy_state, numpy.random.set_state),
)


Snapshot = dict[str, Any]


def snapshot(settings: Sequence[GlobalSetting] = NUMERICS) -> Snapshot:
    """Return the current value of every setting, by name."""
    return {setting.name: setting.read() for setting in settings}


def restore(before: Snapshot, settings: Sequence[GlobalSetting] = NUMERICS) -> dict[str, str]:
    """Restore every setting that differs from `before`.

    Returns a description of each such change, by the setting's name, as `torch.float32 -> torch.float64`.
    """
    changed = {}
    for setting in settings:
        found, expected = setting.read(), before[setting.name]
        if found != expected:
            changed[setting.name] = _describe_change(expected, found)
            setting.write(expected)
    return changed


@contextlib.contextmanager
def isolated_global_state(changed: dict[str, str]) -> Iterator[None]:
    """Restore all global state after the block, and add a description of each change to `changed`.

    Inside the block the random number generators start from seed 0, and gradients are on.
    """
    silent = (*RANDOM[1:], *RESTORED_SILENTLY)
    before, others = snapshot(), snapshot(silent)
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            seed_torch(0)
            random.seed(0)
            numpy.random.seed(0)
            try:
                yield
            finally:
                changed |= restore({**before, "gradients": True})
    finally:
        restore(others, silent)


def _describe_change(before: Any, after: Any) -> str:
    if isinstance(before, Mapping):
        differing = [key for key in {**before, **after} if before.get(key, None) != after.get(key, None)]
        return ", ".join(differing[:4]) + (" ..." if differing[4:] else "")
    if isinstance(before, list):
        return f"{len(before)} entries -> {len(after)}" if len(before) != len(after) else "entries replaced"
    if isinstance(before, bool):
        return "off -> on" if after else "on -> off"
    description = f"{before} -> {after}"
    return description if len(description) < 100 else "changed"


_on_import: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()


def remember_import(subject: Any, changed: dict[str, str]) -> None:
    """Store the changes that importing the subject made, for `changed_on_import`."""
    _on_import[subject] = changed


def changed_on_import(subject: Any) -> dict[str, str]:
    """Return the changes that importing the subject made, as `restore` describes them."""
    return _on_import.get(subject, {})
