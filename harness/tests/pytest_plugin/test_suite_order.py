"""Suites are collected from coarse to fine, so that `-x` stops at what explains most."""

from harness.suites.suite_order import COARSE_TO_FINE
from harness.tests.pytest_plugin.test_trainers import suite


def test_suites_run_from_coarse_to_fine_and_those_of_the_user_first(pytester):
    folder = pytester.mkdir("verifications")
    for name in ("arms", "attention", "own", "structure"):
        (folder / f"{name}.toml").write_text(suite(name, "parameter_count", '{ size = "debug" }', "{ equals = 1 }"))
    collected = pytester.runpytest("--collect-only", "-q").outlines
    names = [line.rpartition("::")[2] for line in collected if "::" in line]
    assert names == ["own", "structure", "attention", "arms"]


def test_every_shipped_suite_has_its_place(pytestconfig):
    shipped = {path.stem for path in (pytestconfig.rootpath / "verifications").glob("*.toml")}
    assert set(COARSE_TO_FINE) == shipped
