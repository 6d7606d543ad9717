"""Settle what a constructor's settings mean: by name, and by behaviour where the built module lacks a size."""

from __future__ import annotations

import dataclasses

from harness.core.errors import SubjectError
from harness.core.sizes import Size
from harness.subjects.adapters.construction.constructor import Constructor
from harness.subjects.adapters.construction.module_constants import with_constants
from harness.subjects.adapters.construction.setting_names import SIZES
from harness.subjects.adapters.construction.shapes import Shapes, lacking, shapes_of
from harness.subjects.adapters.construction.size_search import SizeSearch, built_without_memory
from harness.subjects.adapters.importing.project import Project

# Another size than any of the harness's, at which a subject of one fixed size is seen not to follow.
OTHER = Size("other", vocab_size=389, context=56, layers=5, heads=4, width=80)


def is_settled(constructor: Constructor, shapes: Shapes, size: Size) -> bool:
    """Return True if a built module has the size, and no setting whose name says nothing could be another size."""
    if lacking(shapes, size) or constructor.unknown or constructor.direct is not None:
        return False
    if not constructor.unexplained():
        return True
    feed_forward = constructor.takes("feed_forward_width") or constructor.takes("feed_forward_factor")
    return all(map(constructor.takes, SIZES)) and (feed_forward or 4 * size.width in shapes.dims)


def settle(constructor: Constructor, project: Project | None, name: str) -> Constructor:
    """Return the constructor with the meanings of its settings; constants of the project too where it needs them.

    Raises SubjectError if it cannot be called because no value is known for a setting, and the subject's own error if
    it is that which fails.
    """
    direct = constructor.direct
    if direct is not None:
        constructor = dataclasses.replace(constructor, direct=None)
        if (short := _lacks(constructor, OTHER)) and short == _lacks(direct, OTHER):
            constructor = direct  # its constants change nothing
        elif not _unset(constructor, short) and not constructor.unexplained():
            return constructor
    found = _searched(constructor, name)
    if project is None or not project.constants() or not _unset(found, short := _lacks(found, OTHER)):
        return found
    words = frozenset(word for word, value in project.constants().items() if value >= 1)
    wider = with_constants(found, project, name, words)
    wider = SizeSearch(dataclasses.replace(wider, direct=None)).run()
    return wider if len(_lacks(wider, OTHER)) < len(short) else found


def _searched(constructor: Constructor, name: str) -> Constructor:
    try:
        return SizeSearch(constructor).run()
    except Exception as error:
        if not constructor.unknown:
            raise
        raise SubjectError(
            f"{name}: no value is known for {' and '.join(map(repr, constructor.unknown))}, which "
            f"{'has' if len(constructor.unknown) == 1 else 'have'} no default: {type(error).__name__}: {error}"
        ) from error


def _lacks(constructor: Constructor, size: Size) -> list[str]:
    """Return the sizes that a module built at `size` lacks; all of them if it cannot be built."""
    try:
        return lacking(shapes_of(built_without_memory(constructor, size)), size)
    except Exception:
        return list(SIZES)


def _unset(constructor: Constructor, short: list[str]) -> list[str]:
    """Return the sizes that the module lacks, or that no setting is."""
    return [quantity for quantity in SIZES if quantity in short or not constructor.takes(quantity)]
