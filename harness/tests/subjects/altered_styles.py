"""Copies of the example styles with one thing replaced, for the tests of wrong subjects."""

import importlib
import inspect

STYLES = "harness.tests.subjects.styles"


def altered(folder, style, right, wrong):
    """Write a copy of a style's file with one thing replaced; return the spec of the subject in it."""
    module, name = style.split(":")
    source = inspect.getsource(importlib.import_module(f"{STYLES}.{module}"))
    assert right in source
    file = folder / f"{module}_altered.py"
    file.write_text(source.replace(right, wrong))
    return f"{file}:{name}"
