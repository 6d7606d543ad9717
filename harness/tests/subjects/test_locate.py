"""What a module has under a name, or exports and imports at the first use."""

from types import ModuleType

import pytest

import gpt
from harness.subjects.adapters import adapt
from harness.subjects.adapters.locate import exported
from harness.subjects.protocols import AllocatesCompute, FitsScalingLaw


def module(**names):
    made = ModuleType("mine")
    vars(made).update(names)
    return made


def test_a_name_of_the_module_is_found_without_asking_its_getattr():
    made = module(own=1, __getattr__=lambda name: pytest.fail("asked"))
    assert exported(made, "own") == 1
    assert exported(made, "other") is None
    assert exported(None, "own") is None


def test_a_name_that_the_module_exports_is_imported_at_the_first_use():
    assert "fit_scaling_law" not in vars(gpt)
    assert exported(gpt, "fit_scaling_law").__module__ == "gpt.scaling_law"


def test_a_getattr_that_fails_has_nothing():
    assert exported(module(__all__=["own"], __getattr__=lambda name: 1 / 0), "own") is None


def test_the_functions_that_the_reference_exports_are_abilities():
    subject = adapt("gpt:GPT")
    assert isinstance(subject, FitsScalingLaw)
    assert isinstance(subject, AllocatesCompute)
