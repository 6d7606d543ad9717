"""The subject that a spec on the command line names."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from harness.core.errors import SubjectError
from harness.core.shipped_packages import shipped_package
from harness.subjects.adapters.abilities import ABILITIES
from harness.subjects.adapters.adapted_subject import SMALL, AdaptedSubject
from harness.subjects.adapters.checkpoint_directory import checkpoint_target
from harness.subjects.adapters.completed_build import CompletedBuild
from harness.subjects.adapters.construction.constructor import BY_SIZE, Constructor
from harness.subjects.adapters.construction.find_constructor import find_constructor
from harness.subjects.adapters.construction.module_constants import constructor_in
from harness.subjects.adapters.importing.project import Project
from harness.subjects.adapters.locate import locate, locate_module
from harness.subjects.compiled import class_of
from harness.subjects.protocols import Subject


def adapt(spec: str, *, own: bool = True) -> Subject:
    """Return the subject that `FILE.py:NAME`, `package.module:NAME` or `hf:DIRECTORY` names.

    An object that satisfies the Subject protocol itself (an adapter) is returned unchanged. With `own=False` the name
    means the shipped package, even if the current folder has a module of the same name. Raises SubjectError with a
    message of one line.
    """
    if not own:
        with shipped_package(spec.split(":")[0].split(".")[0]):
            return _subject(spec, *locate_module(spec))
    if spec.startswith("hf:"):
        return _subject(spec, *checkpoint_target(Path(spec.removeprefix("hf:"))))
    target, project = locate(spec)
    return _subject(spec, target, project.module, project)


def _subject(spec: str, target: Any, module: ModuleType, project: Project | None = None) -> Subject:
    if inspect.isclass(target) and not issubclass(target, nn.Module) and hasattr(target, "build"):
        target = _adapter(spec, target)
    if not isinstance(target, nn.Module) and isinstance(target, Subject):
        return target
    made = find_constructor(target, module) if project is None else constructor_in(project, spec.rpartition(":")[2])
    return _adapted(spec, target, made, module, project)


def _adapter(spec: str, target: type) -> Any:
    """Return an instance of an adapter class. Raises SubjectError for what it lacks, before the first check."""
    try:
        made = target()
    except TypeError as error:
        raise SubjectError(
            f"{spec} has a build method, so it is an adapter, but {target.__name__}() cannot be called: {error}"
        ) from error
    made.name = spec  # the name by which a run finds it again, as for its diagnosis
    made.build = CompletedBuild(spec, made)
    return made


def _adapted(spec: str, target: Any, constructor: Constructor, module: ModuleType, project: Project | None) -> Subject:
    """Return a subject with only the abilities that the target has, so that isinstance(subject, Protocol) is right."""
    kind = target if inspect.isclass(target) else type(target)
    if not issubclass(kind, nn.Module):
        kind = _class_built_by(target, constructor) or kind
    abilities = [ability for ability in ABILITIES if ability.found_in(kind, constructor, module)]
    made: AdaptedSubject = type("AdaptedSubject", (*abilities, AdaptedSubject), {})(
        spec, target, constructor, kind, module, project
    )
    return made


def _class_built_by(target: Any, constructor: Constructor) -> type | None:
    """Return the class that a factory builds, by its annotation or by building a small model; None if unknown."""
    annotation = inspect.get_annotations(target).get("return") if inspect.isfunction(target) else None
    if inspect.isclass(annotation) and issubclass(annotation, nn.Module) and annotation is not nn.Module:
        return annotation
    if not constructor.words and constructor.description != BY_SIZE:
        return None  # the factory has one size, which may be a large one
    try:
        with torch.random.fork_rng():
            return class_of(constructor.build(SMALL))
    except Exception:
        return None  # each check that builds the model reports the error
