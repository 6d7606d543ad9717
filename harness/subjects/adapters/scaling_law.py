"""A program's own functions for scaling laws, under the names and in the styles that people write."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from harness.core.errors import MissingAbility, SubjectError
from harness.subjects.adapters.locate import exported

# The names of a function, by what it does: the first that the module or the class has.
FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "fit": (
        "fit_scaling_law", "fit_parametric", "fit_parametric_loss", "fit_chinchilla", "chinchilla_fit", "fit_law",
        "fit_loss", "approach_3", "approach3", "fit_approach_3",
    ),
    "iso_flops": (
        "fit_iso_flops", "fit_isoflops", "fit_iso_flop", "fit_isoflop", "isoflop_exponent", "iso_flop_exponent",
        "approach_2", "approach2", "fit_approach_2",
    ),
    "optimum": (
        "optimal_sizes", "optimal_allocation", "compute_optimal", "optimal_model_and_data", "n_opt",
        "optimal_parameters", "chinchilla_optimal",
    ),
    "flops": ("training_flops", "train_flops", "total_flops", "flops_of_training", "estimate_flops", "compute_flops"),
    "runs": ("read_runs", "load_runs", "read_sweep", "load_sweep", "final_points", "read_points", "load_points"),
}  # fmt: skip
# The words for a quantity, as a parameter, a key or an attribute: lower case, without underscores.
WORDS: Mapping[str, tuple[str, ...]] = {
    "N": ("n", "params", "parameters", "nparams", "numparams", "modelsize", "sizes", "ns", "modelparams", "nopt"),
    "D": ("d", "tokens", "ntokens", "numtokens", "data", "ds", "trainingtokens", "traintokens", "dopt"),
    "L": ("l", "loss", "losses", "ls", "finalloss", "finallosses", "y"),
    "C": ("c", "flops", "compute", "budget", "budgets", "cs", "flop"),
    "E": ("e", "irreducible", "irreducibleloss", "linf", "e0", "entropy"),
    "A": ("a", "acoef", "ncoef"),
    "B": ("b", "bcoef", "dcoef"),
    "alpha": ("alpha", "al", "nexponent", "alphan"),
    "beta": ("beta", "be", "dexponent", "alphad"),
}
LAWS = ("law", "fit", "params", "theta", "coefficients", "constants", "model", "fitted")
CONSTANTS = ("E", "A", "B", "alpha", "beta")  # a law that is a plain tuple has this order
PATHS = ("path", "file", "csv", "table")  # parts of the name of a parameter that takes a file
EXPONENTS = ("a", "sizeexponent", "nexponent", "exponent", "slope", "aopt", "nopt")


@dataclass(frozen=True)
class ScalingFunction:
    """A function of the subject's: what it does, a key of FUNCTIONS, and how it is called."""

    purpose: str
    function: Callable[..., Any]

    @property
    def line(self) -> tuple[str, int]:
        """The file and the line of its `def`."""
        code = inspect.unwrap(self.function).__code__
        return code.co_filename, code.co_firstlineno

    @property
    def parameters(self) -> list[str]:
        """The names of its parameters without a default."""
        found = inspect.signature(self.function).parameters.values()
        kinds = (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        )
        return [each.name for each in found if each.default is inspect.Parameter.empty and each.kind in kinds]

    def call(self, columns: Mapping[str, np.ndarray | float], law: Any = None) -> Any:
        """Return the function's answer to columns by name (N, D, L, C, E ...), of which it gets those that it takes.

        A parameter called `law` or `fit` gets `law`. Arrays are NumPy's; torch tensors if the function fails with them.
        """
        arguments = {name: self._value(name, columns, law) for name in self.parameters}
        try:
            return self.function(**arguments)
        except (TypeError, AttributeError) as first:
            if not any(isinstance(value, np.ndarray) for value in arguments.values()):
                raise
            tensors = {
                name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                for name, value in arguments.items()
            }
            try:
                return self.function(**tensors)
            except (TypeError, AttributeError):
                raise first from None

    def _value(self, name: str, columns: Mapping[str, np.ndarray | float], law: Any) -> Any:
        # "a" is A for who writes in small letters, and "A" is not "a" of another: the exact name comes first.
        found = columns.get(name)
        if found is None:
            word = _word(name)
            found = next((value for key, value in columns.items() if word in WORDS[key]), None)
        if found is None and law is not None and _word(name) in LAWS:
            return law
        if found is None:
            raise MissingAbility(
                f"{self.function.__name__} has a parameter '{name}', which is none of {', '.join(columns)}"
            )
        return found


def scaling_function_of(purpose: str, kind: type, module: ModuleType | None) -> ScalingFunction | None:
    """Return the function for a purpose, of the model's class or of its module; None if there is none."""
    for name in FUNCTIONS[purpose]:
        for home in (kind, module):
            found = inspect.getattr_static(kind, name, None) if home is kind else exported(module, name)
            function = found.__func__ if isinstance(found, staticmethod) else found
            if inspect.isfunction(function) and not (home is kind and function is found):
                return ScalingFunction(purpose, function)  # a plain method of the model takes a model
    return None


def as_law(answer: Any) -> dict[str, float]:
    """Return E, A, B, alpha and beta of a fit: a mapping, an object with attributes, or a tuple in this order.

    Raises SubjectError for anything else.
    """
    answer = _plain(answer)
    found = _named(answer)
    if found:
        words = {key: _word(key) for key in found}
        exact = {name: found[name] for name in CONSTANTS if name in found}
        for name in CONSTANTS:
            if name not in exact:
                key = next((key for key, word in words.items() if word in WORDS[name] and key not in exact), None)
                if key is None:
                    raise SubjectError(f"the fit returned {', '.join(found)}; expected E, A, B, alpha and beta")
                exact[name] = found[key]
        return {name: _number(exact[name]) for name in CONSTANTS}
    values = list(answer) if isinstance(answer, Sequence) else []
    if len(values) != len(CONSTANTS):
        raise SubjectError(f"the fit returned {type(answer).__name__}; expected E, A, B, alpha and beta")
    return dict(zip(CONSTANTS, map(_number, values), strict=True))


def as_exponent(answer: Any) -> float:
    """Return the exponent a of N_opt ~ C^a: a number, the first of a tuple, or by name. Raises SubjectError."""
    answer = _plain(answer)
    found = _named(answer)
    if found:
        key = next((key for key in found if _word(key) in EXPONENTS), None)
        if key is None:
            raise SubjectError(f"the fit returned {', '.join(found)}; expected the exponent of N_opt, as 'a'")
        return _number(found[key])
    return _number(answer[0] if isinstance(answer, Sequence) and answer else answer)


def as_sizes(answer: Any) -> tuple[float, float | None]:
    """Return N and D of an allocation; D is None if it has only N. Raises SubjectError."""
    answer = _plain(answer)
    found = _named(answer)
    if found:
        N, D = (next((found[key] for key in found if _word(key) in WORDS[name]), None) for name in ("N", "D"))
        if N is None:
            raise SubjectError(f"the allocation returned {', '.join(found)}; expected N and D")
        return _number(N), None if D is None else _number(D)
    if isinstance(answer, Sequence) and answer:
        return _number(answer[0]), _number(answer[1]) if len(answer) > 1 else None
    return _number(answer), None


def as_columns(answer: Any) -> dict[str, np.ndarray]:
    """Return N, D and L of runs that were read: a tuple of three, a mapping or a list of rows. Raises SubjectError."""
    if isinstance(answer, list) and answer and _named(answer[0]):
        rows = [_named(row) for row in answer]
        answer = {key: [row[key] for row in rows] for key in rows[0]}
    found = _named(answer)
    if found:
        columns = {name: next((found[key] for key in found if _word(key) in WORDS[name]), None) for name in "NDL"}
    elif isinstance(answer, Sequence) and len(answer) == 3:
        columns = dict(zip("NDL", answer, strict=True))
    else:
        raise SubjectError(f"the runs were returned as {type(answer).__name__}; expected N, D and L")
    if missing := [name for name, values in columns.items() if values is None]:
        raise SubjectError(f"the runs have no column of {missing[0]}; found {', '.join(found)}")
    return {
        name: np.asarray([_number(value) for value in values or ()], dtype=np.float64)
        for name, values in columns.items()
    }


def read_table(function: ScalingFunction, path: Path) -> dict[str, np.ndarray]:
    """Return N, D and L of the runs that the subject reads from a file, which it may take as a path or as a string.

    Raises MissingAbility if it reads something else.
    """
    if len(function.parameters) != 1 or not any(part in function.parameters[0].lower() for part in PATHS):
        raise MissingAbility(f"{function.function.__name__} does not take the path of a table alone")
    try:
        return as_columns(function.function(path))
    except (TypeError, AttributeError):
        return as_columns(function.function(str(path)))


def _named(answer: Any) -> dict[str, Any]:
    """Return the fields of a mapping, a dataclass, a named tuple or an object; {} if it has no names."""
    if isinstance(answer, Mapping):
        return dict(answer)
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        return {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    if isinstance(answer, tuple) and hasattr(answer, "_asdict"):
        return dict(answer._asdict())
    if type(answer).__module__ in ("builtins", "numpy", "torch"):
        return {}
    return (
        {key: value for key, value in vars(answer).items() if not key.startswith("_")}
        if hasattr(answer, "__dict__")
        else {}
    )


def _plain(answer: Any) -> Any:
    """Return an array or a tensor as the list or the number that it is; anything else as it is."""
    return answer.tolist() if isinstance(answer, np.ndarray | torch.Tensor) else answer


def _word(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise SubjectError(f"{type(value).__name__} was returned; expected a number") from error
