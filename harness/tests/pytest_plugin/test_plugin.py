"""The suites behave under pytest as any test does, and a run leaves its records whatever ends it."""

import json
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from harness.tests.pytest_plugin.small_suite import SUITE, records


def test_a_run_passes_fails_and_skips_and_leaves_records_and_a_report(project):
    result = project.runpytest()
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    header, *rows, footer = records(project)
    assert {row["check"]: row["verdict"] for row in rows} == {"right": "pass", "wrong": "fail", "lacking": "skip"}
    assert header["environment"]["torch"]
    assert header["subject"] == {"name": "gpt:GPT"}
    assert footer["complete"]
    assert (project.path / "reports" / "index.md").exists()
    result.stdout.fnmatch_lines(["*verdict by suite*", "*small * 1 pass * 1 fail * 1 skip*", "report: *index.md"])


def test_a_failure_is_told_in_full(project):
    result = project.runpytest("-k", "wrong")
    result.stdout.fnmatch_lines(
        [
            "found 96,576 parameters; expected 96,577",
            "  subject   gpt:GPT",
            "  with      size=debug",
            "  why       one too many, on purpose",
            "  source    this test",
            "  check     verifications/small.toml:13",
            "  again     pytest verifications/small.toml::wrong",
            "FAILED verifications/small.toml::wrong - found 96,576 parameters; *",
        ]
    )


def test_the_command_that_a_failure_names_runs_that_check_alone(project):
    project.runpytest()
    again = next(row["rerun"] for row in records(project)[1:-1] if row["check"] == "wrong")
    result = project.runpytest(*again.split()[1:])
    result.assert_outcomes(failed=1)


def test_a_skip_names_what_is_missing(project):
    result = project.runpytest("-rs", "-k", "lacking")
    message = "gpt:GPT has no attention 'spiral'; it has looped, naive, flash"
    result.stdout.fnmatch_lines([f"SKIPPED*verifications/small.toml:2?: {message}", message, "    small/lacking"])


@pytest.mark.parametrize(
    ("arguments", "outcomes"),
    [
        (["-k", "right"], {"passed": 1, "deselected": 2}),
        (["-m", "small and debug"], {"passed": 1, "failed": 1, "skipped": 1}),
        (["-m", "full"], {"deselected": 3}),
        (["-x"], {"passed": 1, "failed": 1}),
        (["verifications/small.toml::right"], {"passed": 1}),
        (["-n", "2"], {"passed": 1, "failed": 1, "skipped": 1}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_options_that_users_know_work(project, arguments, outcomes):
    project.runpytest(*arguments, "--strict-markers").assert_outcomes(**outcomes)


def test_under_xdist_the_controlling_process_writes_every_record_once(project):
    project.runpytest("-n", "2")
    assert sorted(row["check"] for row in records(project)[1:-1]) == ["lacking", "right", "wrong"]


def test_last_failed_runs_only_what_failed(project):
    project.runpytest()
    result = project.runpytest("--lf")
    result.assert_outcomes(failed=1)


def test_junit_xml_has_every_check(project):
    project.runpytest("--junitxml=junit.xml")
    text = (project.path / "junit.xml").read_text()
    assert 'tests="3"' in text
    assert 'name="wrong"' in text


def test_collect_only_lists_the_checks_and_builds_nothing(project):
    result = project.runpytest("--collect-only", "-q", "--subject", "does_not_exist.py:GPT")
    result.stdout.fnmatch_lines(["verifications/small.toml::right", "verifications/small.toml::wrong"])
    assert not (project.path / "reports").exists()


def test_a_selection_says_so_in_its_footer(project):
    project.runpytest("-k", "right")
    assert records(project)[-1]["deselected"] == 2


def test_a_selection_says_so_under_xdist_too(project):
    """Only the workers know what -k left out."""
    project.runpytest("-k", "right", "-n", "2")
    assert records(project)[-1]["deselected"] == 2


@pytest.mark.parametrize("place", ["a_file", "a_file/below"])
def test_reports_that_cannot_be_written_are_a_usage_error_before_anything_runs(project, place):
    (project.path / "a_file").write_text("")
    result = project.runpytest("--reports", place)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --reports {place}: *a_file is not a folder that can be written"])


def test_a_report_that_cannot_be_written_at_the_end_costs_one_line_and_no_verdict(project):
    (project.path / "reports" / "index.md").mkdir(parents=True)
    result = project.runpytest()
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["FAILED *::wrong - found 96,576*", "the report was not written: *"])


def test_the_report_is_of_this_run_whatever_lies_beside_it(project):
    folder = project.path / "reports" / "records"
    folder.mkdir(parents=True)
    later = {"kind": "header", "schema": 1, "run": "verify", "subject": {"name": "other.py:GPT"}, "environment": {}}
    (folder / "verify-20990101T000000Z.jsonl").write_text(json.dumps(later) + "\n")
    project.runpytest()
    assert "Report on gpt:GPT" in (project.path / "reports" / "index.md").read_text()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--text", "no_such.txt", "*--text no_such.txt*"),
        ("--pretrained", "/no/such/folder", "*pretrained weights '/no/such/folder'*"),
    ],
)
def test_a_missing_resource_that_the_user_named_is_an_error_not_a_skip(project, option, value, message):
    lines = SUITE.split("[[check]]")
    uses = "tokens = 'text'" if option == "--text" else "weights = 'pretrained'"
    check = lines[1].replace('"right"', '"uses"').replace("parameter_count", "parity")
    check = check.replace('size = "debug"', f'size = "124M", compare = "loss", {uses}').replace(
        "equals = 96_576", 'noise = "rounding"'
    )
    (project.path / "verifications" / "small.toml").write_text(lines[0] + "[[check]]" + check)
    result = project.runpytest(option, value)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([message])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "*wte.weight is not there, expected (50257, 768)*"),
        ({"wte.weight": (100, 32)}, "*wte.weight is of shape (100, 32), expected (50257, 768)*"),
        (None, "*model.safetensors: SafetensorError*"),
    ],
)
def test_weights_of_another_size_are_an_error_that_says_which(project, state, message):
    """They were a KeyError in a line of the harness."""
    folder = project.mkdir("small")
    if state is None:
        (folder / "model.safetensors").write_bytes(b"no tensors")
    else:
        tensors = {name: torch.zeros(shape) for name, shape in state.items()}
        save_file({"h.0.attn.bias": torch.zeros(1), **tensors}, folder / "model.safetensors")
    check = 'measure = "parity"\nparameters = { size = "124M", weights = "pretrained", compare = "loss" }\n'
    check += 'expect = { noise = "rounding" }\nwhy = "w"\nsource = "s"\n'
    head = SUITE.split("[[check]]")[0]
    (project.path / "verifications" / "small.toml").write_text(f'{head}[[check]]\nname = "uses"\n{check}')
    result = project.runpytest("--pretrained", "small")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([message])


def test_a_directory_of_hugging_face_is_judged_without_its_weights_which_the_header_says(project):
    (project.mkdir("saved") / "config.json").write_text('{"model_type": "gpt2"}')
    result = project.runpytest("--subject", "hf:saved", "-k", "right")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["hf:saved: the architecture *; its weights are not read (see --pretrained)"])


LONG = "a" * 5000


@pytest.mark.parametrize(
    "arguments",
    [
        ("--subject", f"{LONG}.py:GPT"),
        ("--subject", f"hf:{LONG}"),
        ("--trainer", f"{LONG}.py"),
        ("--reports", LONG),
        ("--deviations", LONG),
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[1][:3]}",
)
def test_a_path_that_no_system_has_is_a_usage_error_of_one_line(project, arguments):
    result = project.runpytest(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = (line for line in result.errlines if line)
    assert line.startswith("ERROR: ")
    assert "File name too long" in line
    assert len(line) < 6000


def test_an_empty_subject_is_not_the_reference(project):
    """`--subject "$UNSET"` is how CI judges nothing and stays green."""
    result = project.runpytest("--subject", "")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize(
    "body",
    [
        "import pytest; pytest.skip('no')",
        "raise type('Odd', (BaseException,), {})('odd')",
        "raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})()",
        "raise ValueError('a\\u2028b \\udce9')",
    ],
)
def test_whatever_a_subject_raises_is_an_error_verdict_on_record(project, body):
    project.makepyfile(mine=f"from gpt import *\nclass Mine(GPT):\n    def forward(self, *a, **o):\n        {body}")
    project.runpytest("--subject", "mine.py:Mine", "--no-diagnosis").assert_outcomes(passed=1, failed=2)
    assert sorted(row["verdict"] for row in records(project)[1:-1]) == ["error", "fail", "pass"]  # one calls it


def test_a_mistake_in_a_suite_is_a_collection_error_and_the_other_suites_are_collected(project):
    broken = SUITE.replace("parameter_count", "parameter_cuont", 1)
    (project.path / "verifications" / "broken.toml").write_text(broken)
    result = project.runpytest("--collect-only")
    result.stdout.fnmatch_lines(["*broken.toml:7: unknown measure 'parameter_cuont'; did you mean 'parameter_count'?"])
    result.stdout.fnmatch_lines(["*CheckItem right*"])
    assert result.ret == pytest.ExitCode.INTERRUPTED


def test_toml_that_is_no_suite_is_left_alone(pytester):
    pytester.makefile(".toml", pyproject="[project]\nname = 'other'")
    assert pytester.runpytest().ret == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("missing.py:GPT", "missing.py is not a file*expected FILE.py:NAME*"),
        ("mine.py:GTP", "mine.py has no 'GTP'; did you mean 'GPT'?"),
        ("mine.py", "'mine.py' names no attribute*"),
        ("broken.py:GPT", "broken.py does not import: ImportError: no such kernel (*broken.py:1)"),
        ("syntax.py:GPT", "syntax.py does not import: SyntaxError: *syntax.py:1)"),
        ("exits.py:GPT", "exits.py does not import: SystemExit: 3*"),
        ("no_such_package:GPT", "no_such_package does not import: ModuleNotFoundError*"),
        ("mine.py:NUMBER", "3 is neither a class, nor a function, nor a torch.nn.Module"),
    ],
)
def test_a_subject_that_cannot_be_imported_is_one_line_and_exit_4(project, subject, message, workers):
    project.makepyfile(
        mine="class GPT: pass\nNUMBER = 3",
        broken="raise ImportError('no such kernel')",
        exits="raise SystemExit(3)",
    )
    (project.path / "syntax.py").write_text("def (")
    result = project.runpytest("--subject", subject, *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --subject {subject}: {message}"])
    result.stderr.no_fnmatch_line("*Traceback*")


def test_a_subject_that_cannot_be_built_is_one_screen_with_lines_to_paste_and_exit_4(project):
    project.makepyfile(mine="from gpt import *\nclass Mine(GPT):\n    def __init__(self, config, **o): 1 / 0")
    result = project.runpytest("--subject", "mine.py:Mine")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: --subject mine.py:Mine: the harness cannot build it.",
            "  failed  ZeroDivisionError: division by zero at mine.py:3 in __init__",
            "  tried   a GPTConfig: bias=True, block_size=32, *",
            "Paste this at the end of mine.py, put values in place of ..., and judge --subject mine.py:build",
            "    def build(size):  # it has size.vocab_size, size.context, size.layers, size.heads, size.width",
            "        return Mine(GPTConfig(vocab_size=size.vocab_size, block_size=size.context, *))",
        ]
    )
    assert not list(project.path.glob("reports/records/*"))


NEEDS = """
from gpt import GPT as Right, GPTConfig
from torch import nn


class GPT(nn.Module):
    def __init__(self, vocab_size, block_size, n_embd, n_head, n_layer, router=None):
        super().__init__()
        router.start()
        sizes = dict(vocab_size=vocab_size, block_size=block_size, n_embd=n_embd, n_head=n_head, n_layer=n_layer)
        self.inner = Right(GPTConfig(**sizes))

    def forward(self, ids, router):
        return self.inner(ids)[0] if router.goes else None


class Router:
    goes = True

    def start(self):
        pass


"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("build", NEEDS.replace("ids, router)", "ids)").replace("if router.goes else None", "")),
        ("Mine", NEEDS.replace("router.start()", "")),
    ],
)
def test_the_lines_that_are_printed_work_once_they_are_pasted_and_filled_in(project, name, text):
    path = project.path / "mine.py"
    path.write_text(text)
    result = project.runpytest("--subject", "mine.py:GPT")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    printed = result.stderr.str()
    pasted = textwrap.dedent(printed.split(f"judge --subject mine.py:{name}\n")[1].split("All that an adapter")[0])
    if name == "build":
        pasted = pasted.replace("n_layer=size.layers", "n_layer=size.layers, router=Router()")
    path.write_text(f"{text}\n{pasted.replace('...', 'Router()')}")
    result = project.runpytest("--subject", f"mine.py:{name}", "-k", "right or wrong")
    result.assert_outcomes(passed=1, failed=1)


def test_ctrl_c_in_a_subject_keeps_what_was_measured(project):
    project.makepyfile(
        mine="""
        from gpt import *

        class Mine(GPT):
            built = 0

            def __init__(self, config, **options):
                Mine.built += 1
                if Mine.built > 1:
                    raise KeyboardInterrupt
                super().__init__(config, **options)
        """
    )
    result = project.runpytest_subprocess("--subject", "mine.py:Mine", "--no-isolate")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    _, record, footer = records(project)
    assert (record["check"], record["verdict"]) == ("right", "pass")
    assert not footer["complete"]
    assert (project.path / "reports" / "index.md").exists()


def test_a_process_that_is_killed_keeps_what_was_measured(project):
    project.makepyfile(
        mine="""
        import os
        from gpt import *

        class Mine(GPT):
            built = 0

            def __init__(self, config, **options):
                Mine.built += 1
                if Mine.built > 1:
                    os.kill(os.getpid(), 9)
                super().__init__(config, **options)
        """
    )
    project.runpytest_subprocess("--subject", "mine.py:Mine", "--no-isolate")
    _, record = records(project)
    assert (record["check"], record["verdict"]) == ("right", "pass")


def test_records_are_json_lines_that_any_program_reads(project):
    project.runpytest("-k", "right")
    (path,) = (project.path / "reports" / "records").glob("*.jsonl")
    assert all(json.loads(line)["kind"] for line in path.read_text().splitlines())
