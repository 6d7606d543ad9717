"""A subject that cannot be built or called: one screen with what was tried, what is missing and lines to paste."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import torch

from harness.core.error_text import describe_error
from harness.core.errors import HarnessError, Missing
from harness.core.sizes import SIZES
from harness.subjects.adapters.adapted_subject import AdaptedSubject
from harness.subjects.adapters.construction.builder_lines import adapter_lines, builder_lines
from harness.subjects.adapters.construction.shapes import shapes_of
from harness.subjects.forward_style import forward_parameters
from harness.subjects.model import Model
from harness.subjects.protocols import Subject

SIZE = SIZES["debug"]


def why_unreadable(subject: Subject) -> str:
    """Return the screen for a subject that cannot be built, or not be called in any way; "" for any other.

    A subject whose own code fails in the forward pass can be read, and so can one that ends the process or hangs: what
    is wrong with it is for the checks to say.
    """
    model = None
    try:
        model = subject.unmapped(SIZE) if isinstance(subject, AdaptedSubject) else subject.build(SIZE)
        with torch.no_grad():
            model.logits(torch.arange(8).reshape(2, 4))
    except Missing as missing:  # it has one size, perhaps another one
        return "" if model is not None or _has_some_size(subject) else screen(subject, model, missing)
    except Exception as error:
        return screen(subject, model, error) if model is None or isinstance(error, HarnessError) else ""
    except KeyboardInterrupt:
        raise
    except BaseException:  # it ends the process or hangs, perhaps in its forward pass: its checks report it
        return ""
    return ""


def screen(subject: Subject, model: Model | None, error: BaseException) -> str:
    """Return what failed, what was tried, and the lines to paste. `model` is None if it was not built."""
    wrong = str(error) if isinstance(error, HarnessError | Missing) else describe_error(error)
    lines = [f"the harness cannot {'build' if model is None else 'call'} it.", *_wrapped("failed", wrong)]
    if isinstance(subject, AdaptedSubject):
        lines += _wrapped("tried", _tried(subject))
    for note in import_notes(subject):
        lines += _wrapped("note", note)
    return "\n".join([*lines, "", lines_to_paste(subject, model)])


def lines_to_paste(subject: Subject, model: Model | None) -> str:
    """Return the lines with which a user has the subject judged, and where they go; "" for an adapter.

    They are a function `build(size)`, or an adapter with a call of its own if the model is built and cannot be called.
    """
    if not isinstance(subject, AdaptedSubject):
        return ""
    where, _, name = subject.name.rpartition(":")
    file = where if where.endswith(".py") else inspect.getsourcefile(subject.target) or where
    module: Any = subject.module or inspect.getmodule(subject.target)
    if model is None:
        text, made = builder_lines(subject.target, name, module), "build"
    else:
        text = adapter_lines(subject.target, name, module, list(forward_parameters(model.module))[1:])
        made = "Mine"
    return "\n".join(
        (
            f"Paste this at the end of {file}, put values in place of ..., and judge --subject {where}:{made}",
            "",
            textwrap.indent(text, "    "),
            "All that an adapter can say: 'Add a subject' in CONTRIBUTING.md.",
        )
    )


def import_notes(subject: Subject) -> list[str]:
    """Return what was done to import the subject, other than what Python would do."""
    return subject.project.notes.lines() if isinstance(subject, AdaptedSubject) and subject.project else []


def settings_notes(subject: Subject, model: Model) -> list[str]:
    """Return what was decided about the subject's settings by behaviour, and which size none of them sets."""
    if not isinstance(subject, AdaptedSubject):
        return []
    notes = list(subject.constructor.notes)
    heads = shapes_of(model.module).heads
    if heads and model.size.heads not in heads and not subject.constructor.takes("heads"):
        notes.append(
            f"no setting is the number of heads: its modules have {' and '.join(map(str, sorted(heads)))} at every "
            f"size, and GPT-2 has {model.size.heads} at the {model.size.name} size"
        )
    return notes


def _tried(subject: AdaptedSubject) -> str:
    made = subject.constructor
    arguments = made.arguments(SIZE)
    if made.description == "a dict" or not arguments:
        return made.description
    return f"{made.description}: {', '.join(f'{word}={value!r}' for word, value in sorted(arguments.items()))}"


def _has_some_size(subject: Subject) -> bool:
    """Return True if a subject of one size has one of the harness's."""
    for size in SIZES.values():
        try:
            subject.build(size, device="meta")
        except Missing:
            continue
        except Exception:
            return True  # its checks report it
        return True
    return False


def _wrapped(label: str, text: str, width: int = 110) -> list[str]:
    indent = " " * 10
    return textwrap.wrap(text, width, initial_indent=f"  {label:<8}", subsequent_indent=indent, break_on_hyphens=False)
