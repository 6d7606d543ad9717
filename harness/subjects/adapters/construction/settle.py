"""Settle what a constructor's settings mean: by name, and by behaviour where the built module lacks a size."""

from __future__ import annotations

from harness.core.errors import SubjectError
from harness.core.sizes import Size
from harness.subjects.adapters.construction.constructor import Constructor
from harness.subjects.adapters.construction.module_constants import with_constants
from harness.subjects.adapters.construction.setting_names import SIZES
from harness.subjects.adapters.construction.shapes import Shapes, lacking, shapes_of
from harness.subjects.adapters.construction.size_search import SMALL, SizeSearch, built_without_memory
from harness.subjects.adapters.importing.project import Project


def is_settled(constructor: Constructor, shapes: Shapes, size: Size) -> bool:
    """Return True if a built module has the size, and no setting whose name says nothing could be another size."""
    if lacking(shapes, size) or constructor.unknown:
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
    try:
        found = SizeSearch(constructor).run()
    except Exception as error:
        if not constructor.unknown:
            raise
        raise SubjectError(
            f"{name}: no value is known for {' and '.join(map(repr, constructor.unknown))}, which "
            f"{'has' if len(constructor.unknown) == 1 else 'have'} no default: {type(error).__name__}: {error}"
        ) from error
    if constructor.direct is not None and (short := _lacks(found)) and short == _lacks(constructor.direct, constructor):
        return constructor.direct  # its constants change nothing
    if project is not None and project.constants() and _lacks(found):
        words = frozenset(word for word, value in project.constants().items() if value >= 1 or word in found.words)
        wider = SizeSearch(with_constants(found, project, name, words | found.words & set(project.constants()))).run()
        return wider if len(_lacks(wider)) < len(_lacks(found)) else found
    return found


def _lacks(constructor: Constructor, stated: Constructor | None = None) -> list[str]:
    """Return the sizes that the built module lacks, or that nothing sets; `stated` says what is set."""
    module = built_without_memory(constructor, SMALL)
    short = lacking(shapes_of(module), SMALL)
    return short + [
        quantity for quantity in SIZES if quantity not in short and not (stated or constructor).takes(quantity)
    ]
