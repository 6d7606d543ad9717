"""A declared deviation is excused, and nothing else is; a declaration that does not apply is an error."""

import pytest

from harness.core.record_files import read as records_of
from harness.core.sizes import SIZES
from harness.judging.runner import make_runner
from harness.oracle.declared import compared_with
from harness.oracle.deviation_fit import DeviationFit
from harness.oracle.deviations import (
    DeviationError,
    beside,
    declared_faults,
    except_for,
    kind,
    known,
    problems,
    read,
)
from harness.oracle.formula import Formula, Replacement
from harness.oracle.gpt2_with_deviations import DeviatingGPT2
from harness.oracle.named_deviations import ALIASES, NAMED
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.oracle.variants import variants
from harness.subjects.adapters import adapt
from harness.tests.oracle.declared_examples import ACTIVATED, declare, write

CHANGES = {
    "exact-gelu": (', approximate="tanh"', ""),
    "mlp-silu": (ACTIVATED, "F.silu(self.up_proj(x))"),
    "untied-head": ("        self.head.weight = self.tok_emb.weight\n", ""),
    "bias-missing": ("nn.Linear(dim, dim)", "nn.Linear(dim, dim, bias=False)"),
}
SETTINGS = {"bias-missing": "\nbiases = ['attn.c_attn', 'attn.c_proj']"}
BENEATH = ("masked_fill(hidden, -math.inf)", "masked_fill(hidden.roll(1, 1), -math.inf)")
PARITY = [f"parity::debug,weights=probe,compare={part}" for part in ("blocks", "logits", "loss", "gradients")]
COUNTS = ["structure::parameter-count,size=debug,tied=true", "structure::parameters-by-component,size=debug"]


@pytest.mark.parametrize("what", CHANGES)
def test_a_declared_deviation_fails_with_its_reason_and_an_undeclared_one_without(shipped, tmp_path, what):
    spec = write(tmp_path, (CHANGES[what],))
    strict = make_runner(spec)
    lenient = make_runner(spec, deviations=declare(tmp_path, (f"what = '{what}'{SETTINGS.get(what, '')}",)))
    failing = [name for name in (*PARITY, *COUNTS) if strict.run(shipped[name]).verdict != "pass"]
    assert failing
    for name in failing:
        record = lenient.run(shipped[name])
        assert record.verdict == "fail", "value and verdict stay what they are"
        assert record.declared.endswith(": on purpose"), name


@pytest.mark.parametrize("what", CHANGES)
def test_another_fault_beneath_a_declared_one_still_fails(shipped, tmp_path, what):
    runner = make_runner(
        write(tmp_path, (CHANGES[what], BENEATH)),
        deviations=declare(tmp_path, (f"what = '{what}'{SETTINGS.get(what, '')}",)),
    )
    record = runner.run(shipped[PARITY[0]])
    assert (record.verdict, record.declared) == ("fail", "")
    assert record.where[0] == "block 0"


CLAMPED = ("q @ k.mT / math.sqrt(self.size)", "(q @ k.mT / math.sqrt(self.size)).clamp(-20.0, 20.0)")


def test_a_declared_bound_that_only_large_scores_show_is_founded(shipped, tmp_path):
    """With the probe weights a GPT-2 whose scores are clamped is GPT-2: it was said to have no such thing."""
    spec, declared = write(tmp_path, (CLAMPED,)), declare(tmp_path, ("what = 'scores-clamped'",))
    extreme = shipped["parity::debug,weights=extreme,compare=logits"]
    assert make_runner(spec, deviations=declared).run(extreme).declared.endswith(": on purpose")
    assert DeviationFit(declared, adapt(spec)).unfounded() == {}
    assert DeviationFit(declared, adapt(write(tmp_path, ()))).unfounded() != {}
    beneath = make_runner(write(tmp_path, (CLAMPED, BENEATH)), deviations=declared)
    assert beneath.run(extreme).declared == ""


def test_a_declared_operation_may_be_gpt2s_with_a_change():
    """It called itself in place of GPT-2's: scores that are clamped, declared, ended in a RecursionError."""
    size, weights = SIZES["debug"], {name: tensor.double() for name, tensor in state("debug", "probe").items()}
    ids, _ = batch(size, "random", rows=1, length=5)
    endless = set()
    for variant in variants():
        with compared_with(DeviatingGPT2((Replacement(variant.operation, variant.function),))):
            try:
                Formula(size, weights)(ids)
            except RecursionError:
                endless.add(variant.fault)
            except (RuntimeError, KeyError, IndexError):  # it needs another size, or more weights
                continue
    assert endless == set()


def test_each_of_two_deviations_excuses_its_own_checks(shipped, tmp_path):
    spec = write(tmp_path, (CHANGES["exact-gelu"], CHANGES["untied-head"]))
    both = declare(tmp_path, ("what = 'exact-gelu'", "what = 'untied-head'"))
    runner = make_runner(spec, deviations=both)
    assert runner.run(shipped[PARITY[1]]).declared == "exact GELU: on purpose"
    assert runner.run(shipped[COUNTS[0]]).declared == "untied head: on purpose"
    assert runner.run(shipped[PARITY[3]]).declared == "exact GELU: on purpose; untied head: on purpose"


def test_a_parameter_count_that_the_declared_deviation_does_not_explain_still_fails(shipped, tmp_path):
    spec = write(tmp_path, (CHANGES["untied-head"], ("bias=False)", "bias=True)")))
    record = make_runner(spec, deviations=declare(tmp_path, ("what = 'untied-head'",))).run(shipped[COUNTS[0]])
    assert (record.verdict, record.declared) == ("fail", "")


def test_the_verdict_names_the_deviations_and_their_faults(tmp_path):
    both = declare(tmp_path, ("what = 'exact-gelu'", "checks = ['structure::too-long-is-refused']"))
    assert except_for(both) == ("GPT-2 except: exact GELU (on purpose), structure::too-long-is-refused (on purpose)")
    assert declared_faults(both) == {"gelu-erf-for-tanh"}


def test_the_file_is_found_beside_the_subject(tmp_path):
    assert beside(write(tmp_path, ())) is None
    declare(tmp_path, ("what = 'exact-gelu'",))
    assert beside(f"{tmp_path}/mine.py:GPT") == tmp_path / "mine.deviations.toml"
    assert beside("gpt:GPT") is None
    assert beside("no_such_package.at_all:GPT") is None


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (
            "[[deviation]]\nwhat = 'exact-gleu'\nreason = 'r'",
            1,
            "unknown deviation 'exact-gleu'; did you mean 'exact-gelu'?",
        ),
        ("# why\n[[deviation]]\nwhat = 'exact-gelu'", 2, "a deviation needs a reason, as a string"),
        ("[[deviation]]\nwhat = 'exact-gelu'\nreason = ' '", 1, "a deviation needs a reason, as a string"),
        ("[[deviation]]\nreason = 'r'", 1, "expected either what = '...' or checks = ['suite::check', ...]"),
        ("[[deviation]]\nwhat = 'exact-gelu'\nchecks = ['a::b']\nreason = 'r'", 1, "expected either what = "),
        ("[[deviation]]\nchecks = 'a::b'\nreason = 'r'", 1, "checks: expected a list of 'suite::check', found 'a::b'"),
        ("[[deviation]]\nchecks = []\nreason = 'r'", 1, "checks: expected a list "),
        ("[[deviation]]\nwhat = 3\nreason = 'r'", 1, "unknown deviation '3'"),
        ("[[deviation]]\nwhat = 'exact-gelu'\nepsilon = 1e-6\nreason = 'r'", 1, "'exact-gelu' has no key 'epsilon'"),
        ("[[deviation]]\nwhat = 'rms-norm'\nepsilon = 'small'\nreason = 'r'", 1, "epsilon: expected a number, found"),
        ("[[deviation]]\nwhat = 'bias-missing'\nreason = 'r'", 1, "biases: expected some of ['ln_1', 'attn.c_attn', "),
        (
            "[[deviation]]\nwhat = 'bias-missing'\nbiases = ['qkv']\nreason = 'r'",
            1,
            "biases: expected some of ['ln_1', ",
        ),
        ("[[deviation]]\nwaht = 'exact-gelu'\nreason = 'r'", 1, "unknown key 'waht'; did you mean 'what'?"),
        ("\n[[deviations]]\nwhat = 'exact-gelu'", 2, "unknown table 'deviations'; did you mean 'deviation'?"),
        ("[deviation]\nwhat = 'exact-gelu'", 1, "expected [[deviation]], in double brackets"),
        ("", 1, "expected [[deviation]], in double brackets"),
        ("[[deviation]]\nwhat = \nreason = 'r'", 2, "not TOML: "),
    ],
)
def test_an_invalid_declaration_is_an_error_with_its_line(tmp_path, text, line, message):
    path = tmp_path / "mine.deviations.toml"
    path.write_text(text)
    with pytest.raises(DeviationError) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}:{line}: {message}")


KNOWN = {
    "structure::count,size=debug": "debug",
    "structure::count,size=124M": "124M",
    "parity::debug,x": "debug",
    "initialisation::x": "debug",
}


EXACT, NONE = {"mine.deviations.toml:1": "the subject has no 'exact-gelu'"}, {}


@pytest.mark.parametrize(
    ("table", "applied", "judged", "unfounded", "message"),
    [
        ("checks = ['structure::cuont*']", [], {}, NONE, "names no check; did you mean 'structure::count'?"),
        ("checks = ['structure::count*']", [], {"structure::count,size=debug": "pass"}, NONE, "count*' names fails"),
        ("checks = ['structure::count*']", [" structure::count*"],
         {"structure::count,size=debug": "declared"}, NONE, None),
        ("checks = ['structure::count*']", [], {"structure::count,size=debug": "skip"}, NONE, None),
        ("checks = ['structure::count*']", [], {"structure::count,size=debug": "error"}, NONE, None),
        ("checks = ['structure::count*']", [], {"parity::debug,x": "pass"}, NONE, None),
        ("checks = ['structure::count,size=124M']", [], {"structure::count,size=debug": "pass"}, NONE, None),
        ("what = 'exact-gelu'", [], {"parity::debug,x": "pass"}, EXACT, "the subject has no 'exact-gelu'"),
        ("what = 'exact-gelu'", [], {"parity::debug,x": "fail"}, EXACT, "the subject has no 'exact-gelu'"),
        ("what = 'exact-gelu'", [], {"parity::debug,x": "declared"}, NONE, None),
        ("what = 'exact-gelu'", [], {"structure::count,size=debug": "pass"}, EXACT, None),
        ("what = 'exact-gelu'", [], {"parity::debug,x": "skip"}, EXACT, None),
        ("what = 'exact-gelu'", [], {"parity::debug,x": "error"}, EXACT, None),
        ("what = 'init-uniform'", [], {"initialisation::x": "pass"}, NONE, "the subject has no 'init-uniform'"),
        ("what = 'init-uniform'", [], {"initialisation::x": "skip"}, NONE, None),
    ],
)  # fmt: skip
def test_a_declaration_that_names_nothing_or_does_not_apply_is_reported_once_its_checks_have_run(
    tmp_path, table, applied, judged, unfounded, message
):
    (each,) = declare(tmp_path, (table,))
    there = {f"{tmp_path}/{place}": text for place, text in unfounded.items()}
    found = problems([each], {f"{each.place}{mark}" for mark in applied}, judged, KNOWN, there)
    assert len(found) == (message is not None)
    assert all(line.startswith(f"{tmp_path}/mine.deviations.toml:1: ") and message in line for line in found)


SUITE = """\
[suite]
title = "Small"
about = "Parity and the number of parameters."

[[check]]
name = "debug"
measure = "parity"
parameters = { size = "debug" }
matrix = { compare = ["blocks", "logits"] }
expect = { noise = "rounding" }
why = "it is to be GPT-2"
source = "this test"

[[check]]
name = "count"
measure = "parameter_count"
parameters = { size = "debug" }
expect = { equals = 96_576 }
why = "it is"
source = "closed form"
"""


@pytest.fixture
def project(pytester):
    """A folder with one suite in it, called parity, and a GPT of the exact GELU."""
    (pytester.mkdir("verifications") / "parity.toml").write_text(SUITE)
    write(pytester.path, (CHANGES["exact-gelu"],))
    pytester.makeini("[pytest]\naddopts = --no-diagnosis")
    return pytester


@pytest.mark.parametrize("option", [["--no-isolate"], ["-n", "1"], []], ids=" ".join)
def test_a_run_of_declared_failures_alone_is_green_and_says_except(project, option):
    declare(project.path, ("what = 'exact-gelu'",))
    result = project.runpytest("--subject", "mine.py:GPT", *option)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        [
            "parity  *1 pass * 2 declared *",
            "mine.py:GPT: GPT-2 except: exact GELU (on purpose)",
            "*1 passed, *2 declared*",
        ]
    )
    (path,) = (project.path / "reports" / "records").glob("*.jsonl")
    rows = [row for row in records_of(path) if row["kind"] == "record"]
    assert {row["check"]: (row["verdict"], row.get("declared")) for row in rows} == {
        "debug": ("fail", "exact GELU: on purpose"),
        "count": ("pass", None),
    }
    page = (project.path / "reports" / "index.md").read_text()
    assert "GPT-2 except: exact GELU (on purpose)" in page
    assert "1 of 3 checks pass, and 2 fail as declared." in page


def test_a_declaration_that_no_longer_applies_makes_the_run_red(project):
    write(project.path, ())
    declare(project.path, ("what = 'exact-gelu'", "checks = ['parity::cuont']"))
    result = project.runpytest("--subject", "mine.py:GPT")
    result.assert_outcomes(passed=3)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*mine.deviations.toml:1: the subject has no 'exact-gelu' (exact GELU); remove it",
            "*mine.deviations.toml:5: 'parity::cuont' names no check; did you mean 'parity::count'?",
        ]
    )


def test_a_declaration_whose_checks_were_not_selected_is_not_reported(project):
    declare(project.path, ("what = 'exact-gelu'", "checks = ['parity::debug*']"))
    assert project.runpytest("--subject", "mine.py:GPT", "-k", "count").ret == pytest.ExitCode.OK


def test_a_file_may_be_named_and_a_mistake_in_it_is_a_usage_error(project):
    (project.path / "other.toml").write_text("[[deviation]]\nwhat = 'exact-gleu'\nreason = 'r'")
    result = project.runpytest("--subject", "mine.py:GPT", "--deviations", "other.toml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: other.toml:1: unknown deviation 'exact-gleu'; did you mean 'exact-gelu'?"])


def test_the_shipped_checks_are_known_where_the_ids_do_not_lead_to_them(tmp_path):
    """With --pyargs from another project, a declaration that no longer applied was accepted."""
    from types import SimpleNamespace

    from harness.pytest_plugin.suites_of_run import known_checks

    known = known_checks([{"id": "parity.toml::some-check"}], SimpleNamespace(rootpath=tmp_path))
    assert "parity::debug,weights=probe,compare=blocks" in known


RAISES = "    def generate(self, ids, max_new_tokens, temperature=1.0, top_k=None):\n        raise IndexError('no')\n"


def test_a_declaration_survives_a_check_that_raises(shipped, tmp_path):
    """Once a check had raised, every declaration was forgotten for the checks that followed."""
    generate = ("    def forward(self, ids):", f"{RAISES}\n    def forward(self, ids):")
    spec = write(tmp_path, (CHANGES["untied-head"], generate))
    deviations = declare(tmp_path, ("what = 'untied-head'", "checks = ['generation::*']"))
    runner = make_runner(spec, deviations=deviations)
    raised = runner.run(shipped["generation::seed-decides"])
    assert (raised.verdict, raised.declared) == ("error", "generation::*: on purpose")
    assert runner.run(shipped[COUNTS[0]]).declared == "untied head: on purpose"


def test_a_measure_that_hung_before_is_excused_as_well_if_it_is_declared(shipped, tmp_path):
    runner = make_runner(write(tmp_path, ()), deviations=declare(tmp_path, ("checks = ['generation::*']",)))
    check = shipped["generation::seed-decides"]
    runner._hung[check.measure, "debug"] = "not run: it hung before"
    assert runner.run(check).declared == "generation::*: on purpose"


def test_every_id_that_is_offered_can_be_declared():
    assert {*NAMED, *ALIASES} <= known()
    assert [what for what in known() if kind(what) is None] == []


def test_a_deviation_that_no_formula_computes_excuses_the_checks_of_its_subject_matter(shipped, tmp_path):
    (uniform,) = declare(tmp_path, ("what = 'init-uniform'",))
    assert not uniform.computed
    assert uniform.excuses("initialisation::normal-numbers,size=debug")
    assert not uniform.excuses("parity::debug,weights=probe,compare=logits")
