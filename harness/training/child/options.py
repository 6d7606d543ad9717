"""The command-line options of a program, read off its own argparse parser when it parses its arguments."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from harness.training.child.recorder import StopRecording
from harness.training.child.seams.patches import Patches
from harness.training.recording_files import RecordingWriter


@contextlib.contextmanager
def find_options(writer: RecordingWriter) -> Iterator[None]:
    """Write the options of the first parser that parses arguments, and stop the program there.

    A program that parses none is stopped where it calls a module, or steps an optimizer, for the first time.
    """

    def parse_known_args(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        writer.event("options", {"options": [_described(action) for action in parser._actions]})
        raise StopRecording

    def called(*_: Any) -> None:
        raise StopRecording

    patches = Patches()
    hooks = [register_module_forward_pre_hook(called), register_optimizer_step_pre_hook(called)]
    patches.replace(argparse.ArgumentParser, "parse_known_args", lambda original: parse_known_args)
    patches.replace(argparse.ArgumentParser, "parse_known_intermixed_args", lambda original: parse_known_args)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        patches.restore()


def _described(action: argparse.Action) -> dict[str, Any]:
    """Return an option as JSON: its flags, its kind and its default."""
    kind = type(action).__name__
    default = action.default
    return {
        "flags": list(action.option_strings),
        "name": action.dest,
        "takes_value": action.nargs != 0 and kind != "BooleanOptionalAction",
        "negated": next((flag for flag in action.option_strings if flag.startswith("--no-")), None),
        "metavar": action.metavar if isinstance(action.metavar, str) else None,
        "choices": [str(choice) for choice in action.choices] if action.choices is not None else None,
        "default": default if isinstance(default, bool | int | float | str) and default != argparse.SUPPRESS else None,
        "help": "help" in kind.lower() or "version" in kind.lower(),
    }
