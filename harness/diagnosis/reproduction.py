"""The reproduction: a stand-alone script that shows the first difference without the harness."""

from __future__ import annotations

import base64
import dataclasses
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from keyword import iskeyword
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from harness.core.devices import CPU
from harness.core.error_text import is_user_file
from harness.core.sizes import SIZES, Size
from harness.diagnosis.finding import Finding
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.compiled import original
from harness.subjects.dropout_calls import has_dropout_setting
from harness.subjects.forward_style import style_of
from harness.subjects.model import Model
from harness.subjects.protocols import Subject

SIZE = "debug"
TEMPLATE = '''"""{title}"""
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

sys.path[:0] = {roots!r}
{imports}

torch.set_default_dtype(torch.float64)
weights = load_file(Path(__file__).with_suffix(".safetensors"))
mine = {call}.eval()
mine.load_state_dict({{name[5:]: t.double() for name, t in weights.items() if name[:5] == "mine."}}, strict=False)
gpt2 = GPT2LMHeadModel(GPT2Config({sizes})).eval()
gpt2.load_state_dict({{name[5:]: t.double() for name, t in weights.items() if name[:5] == "gpt2."}}, strict=False)
with torch.no_grad():
    difference = ({logits} - gpt2(weights["ids"]).logits{positions}).abs().max()
print(f"the logits differ by {{difference:.2g}} in float64, where rounding is some 1e-14")
'''


class ConstructionRecorder:
    """Record the arguments with which each module is built, inside the block."""

    def __init__(self) -> None:
        self.arguments: dict[int, dict[str, Any]] = {}  # by the module's id

    def __enter__(self) -> ConstructionRecorder:
        self._original = original = nn.Module.__init__

        def init(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            frame = sys._getframe(1)  # the module's own __init__, if that is what calls this one
            code = frame.f_code
            if code.co_name == "__init__" and frame.f_locals.get(code.co_varnames[0]) is module:
                count = code.co_argcount + code.co_kwonlyargcount
                names = code.co_varnames[1:count]
                self.arguments[id(module)] = {name: frame.f_locals.get(name) for name in names}
            original(module, *args, **kwargs)

        nn.Module.__init__ = init  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *error: object) -> None:
        nn.Module.__init__ = self._original  # type: ignore[method-assign]


def reproduction(subject: Subject, finding: Finding) -> tuple[str, str]:
    """Return the script, and the weights that it reads (safetensors, in base64).

    Return "" for both if the script cannot be written: the module's arguments are no Python source, its answer has no
    logits, or importing its file does more than define it.
    """
    size = SIZES[SIZE]
    with ConstructionRecorder() as recorder:
        options = {"device": CPU, **_without_dropout(subject)}  # the script needs no other device
        model = build_with_weights(subject, size, state(SIZE, "probe"), "float64", **options)
    module = original(model.module)
    arguments = recorder.arguments.get(id(module), {})
    kind = type(module)
    home = sys.modules.get(kind.__module__)
    call = _call(kind.__name__, arguments)
    # A class that its module does not have under its name was made by a function, or with other constants.
    if call is None or getattr(home, kind.__qualname__, None) is not kind or _is_imported_in_part(subject):
        return "", ""
    ids, _ = batch(size, "random", rows=2, length=24)
    logits, positions = _logits(model, ids)
    if not logits:
        return "", ""
    script = TEMPLATE.format(
        title=f"{subject.name} is not GPT-2: {finding.where}: {finding.cause}".replace('"""', "'''"),
        roots=list(dict.fromkeys(_import_name_and_root(name)[1] for name in _own_modules(kind.__module__))),
        imports=_imports(kind, arguments),
        call=call,
        sizes=_sizes(size),
        logits=logits,
        positions=positions,
    )
    return script, _weights(module, ids)


def _without_dropout(subject: Subject) -> dict[str, Any]:
    return {"dropout": 0.0} if has_dropout_setting(subject) else {}


def _is_imported_in_part(subject: Subject) -> bool:
    """Return True if statements of the subject's file were left out, or other modules took the place of some."""
    notes = getattr(getattr(subject, "project", None), "notes", None)
    return bool(notes is not None and (notes.left_out or notes.replaced))


def _own_modules(name: str) -> list[str]:
    """Return the name of a user's module, and of all of the user's modules that it uses, directly or not."""
    found, waiting = [], [name]
    while waiting:
        own = waiting.pop(0)
        module = sys.modules.get(own)
        file = getattr(module, "__file__", None)
        if module is None or own in found or file is None or not is_user_file(file):
            continue
        found.append(own)
        used = [value.__name__ if inspect.ismodule(value) else _module_of(value) for value in vars(module).values()]
        waiting += list(dict.fromkeys(used))
    return found


def _module_of(value: Any) -> str:
    own = getattr(value, "__module__", "") if inspect.isclass(value) or inspect.isfunction(value) else ""
    return str(own or "")


def _import_name_and_root(name: str) -> tuple[str, str]:
    """Return the name under which a plain script imports a user's module, and the folder that must be on its path."""
    path = Path(str(sys.modules[name].__file__)).resolve()
    parts = path.parent.parts if path.stem == "__init__" else path.with_suffix("").parts
    words = name.split(".")
    if parts[-len(words) :] == tuple(words):
        return name, str(Path(*parts[: -len(words)]))
    return path.stem, str(path.parent)


def _call(name: str, arguments: Mapping[str, Any]) -> str | None:
    """Return a call with keyword arguments as Python source; None if an argument is no Python source."""
    texts = {key: _as_source(value) for key, value in arguments.items()}
    if any(text is None or not key.isidentifier() for key, text in texts.items()):
        return None
    return f"{name}({', '.join(f'{key}={text}' for key, text in texts.items())})"


def _as_source(value: Any) -> str | None:
    """Return a value as Python source; None if it has none."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, dict):
        items = [(repr(key), _as_source(item)) for key, item in value.items() if isinstance(key, str)]
        return None if any(text is None for _, text in items) else "{" + ", ".join(f"{k}: {t}" for k, t in items) + "}"
    fields = (
        {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        if dataclasses.is_dataclass(value)
        else getattr(value, "__dict__", None)
    )
    if not fields or isinstance(value, nn.Module):
        return None
    name = type(value).__name__ if dataclasses.is_dataclass(value) else "SimpleNamespace"
    return _call(name, fields)


def _imports(kind: type, arguments: Mapping[str, Any]) -> str:
    """Return the lines that import the module's class and the classes of its arguments."""
    names = {_import_name_and_root(kind.__module__)[0]: [kind.__name__]}
    for value in _objects(arguments.values()):
        if dataclasses.is_dataclass(value):
            names.setdefault(_import_name_and_root(type(value).__module__)[0], []).append(type(value).__name__)
        else:
            names["types"] = ["SimpleNamespace"]
    return "\n".join(_import(module, sorted(set(own))) for module, own in names.items())


def _import(module: str, names: Sequence[str]) -> str:
    """Return the lines that import these names of a module; a file may be called `my-gpt.py`, or `class.py`."""
    if all(word.isidentifier() and not iskeyword(word) for word in module.split(".")):
        return f"from {module} import {', '.join(names)}"
    return "\n".join(
        (
            "from importlib import import_module",
            f"own = import_module({module!r})",
            *(f"{name} = own.{name}" for name in names),
        )
    )


def _objects(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the values that are no plain numbers, text or dicts, and those in their fields."""
    for value in values:
        if isinstance(value, dict):
            yield from _objects(value.values())
        elif value is not None and not isinstance(value, bool | int | float | str):
            yield value
            yield from _objects(vars(value).values() if hasattr(value, "__dict__") else ())


def _logits(model: Model, ids: Tensor) -> tuple[str, str]:
    """Return the expression for the logits in the module's answer to the ids alone, and the slice of positions.

    The slice is "" for all positions. Return "" for both if there are no logits.
    """
    call = "mine(weights['ids'])"
    if (style := style_of(model.module)).arguments or style.one_sequence:
        return "", ""  # it is called with more than the ids, or row by row
    with torch.no_grad():
        answer = model.module(ids)
    candidates: list[tuple[str, Any]] = [(call, answer)]
    if isinstance(answer, tuple | list):
        candidates = [(f"{call}[{n}]", item) for n, item in enumerate(answer)]
    elif isinstance(answer, Mapping):
        candidates = [(f"{call}[{key!r}]", item) for key, item in answer.items()]
    elif hasattr(answer, "logits"):
        candidates = [(f"{call}.logits", answer.logits)]
    for text, value in candidates:
        if isinstance(value, Tensor) and value.ndim == 3 and value.shape[-1] == model.size.vocab_size:
            return text, "" if value.shape[1] == ids.shape[1] else "[:, -1:]"
    return "", ""


def _weights(module: nn.Module, ids: Tensor) -> str:
    """Return the module's parameters (`mine.`), GPT-2's (`gpt2.`) and the ids, as safetensors in base64."""
    tensors = {f"mine.{name}": t.detach().float().contiguous().clone() for name, t in module.named_parameters()}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        tensors.setdefault(f"mine.{name}", parameter.detach().float().contiguous().clone())
    tensors |= {f"gpt2.{name}": tensor.clone().contiguous() for name, tensor in state(SIZE, "probe").items()}
    return base64.b64encode(save({**tensors, "ids": ids.contiguous()})).decode("ascii")


def _sizes(size: Size) -> str:
    """Return the arguments of GPT2Config."""
    sizes: dict[str, int | None] = {"vocab_size": size.vocab_size, "n_positions": size.context, "n_embd": size.width}
    sizes |= {"n_layer": size.layers, "n_head": size.heads, "bos_token_id": None, "eos_token_id": None}
    return ", ".join(f"{key}={value}" for key, value in sizes.items())
