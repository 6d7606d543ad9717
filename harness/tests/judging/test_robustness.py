"""Whatever a subject does to the process, its input or itself is named, and the other checks run."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from harness.core.captured_output import CapturedOutput, captured_output, shorten
from harness.core.errors import SubjectError
from harness.core.limits import Limits, TooLong, alarm
from harness.judging.runner import make_runner
from harness.oracle.deviations import read  # noqa: F401 - imported before pytester forgets
from harness.pytest_plugin.terminal_summary import summary
from harness.tests.judging.naughty import ANSWER, AT, CONSTRUCTION, FORWARD, subject

STATE = "behaviour::changes-no-global-state"
GROWTH = "behaviour::memory-does-not-grow,of="
# (where, the line, the check that must reject it, a word of what it says)
NAUGHTY = [
    (
        CONSTRUCTION,
        "torch.set_default_dtype(torch.float64)",
        STATE,
        "the default dtype: torch.float32 -> torch.float64",
    ),
    (FORWARD, "torch.set_grad_enabled(False)", STATE, "gradients: on -> off, in a forward pass"),
    (FORWARD, "torch.set_num_threads(3)", STATE, "the number of threads"),
    (CONSTRUCTION, "torch.use_deterministic_algorithms(True)", STATE, "deterministic algorithms"),
    (CONSTRUCTION, "torch.set_float32_matmul_precision('medium')", STATE, "highest -> medium"),
    (CONSTRUCTION, "torch.manual_seed(1337)", STATE, "torch's random numbers: seeded anew, on construction"),
    (CONSTRUCTION, "numpy.random.seed(1)", STATE, "numpy's random numbers: seeded anew"),
    (CONSTRUCTION, "random.seed(1)", STATE, "Python's random numbers: seeded anew"),
    (FORWARD, "torch.rand(1)", STATE, "torch's random numbers: drawn from"),
    (CONSTRUCTION, "F.gelu = lambda x, **_: x", STATE, "torch.nn.functional.gelu"),
    (FORWARD, "torch.tanh = lambda x: x", STATE, "torch.tanh ("),
    (
        CONSTRUCTION,
        "HF.NewGELUActivation.forward = lambda self, x: x",
        STATE,
        "NewGELUActivation.forward (",
    ),
    (CONSTRUCTION, "HF.ACT2CLS['gelu_new'] = torch.nn.ReLU", STATE, "transformers.activations.ACT2CLS.gelu_new"),
    (FORWARD, "os.chdir('/')", STATE, "the current folder"),
    (FORWARD, "os.environ['MINE'] = '1'", STATE, "environment variables: MINE"),
    (FORWARD, "warnings.simplefilter('ignore')", STATE, "warning filters"),
    (FORWARD, "logging.disable()", STATE, "the log level"),
    (CONSTRUCTION, "signal.signal(signal.SIGINT, signal.SIG_IGN)", STATE, "SIGINT"),
    (FORWARD, "idx.clamp_(max=5)", "behaviour::writes-not-into-its-input", "ids: true"),
    (
        FORWARD,
        "if targets is not None: targets[0, 0] = 1 - targets[0, 0].clamp(max=1)",
        "behaviour::writes-not-into-its-input",
        "targets: true",
    ),
    (ANSWER, "logits = logits + 1e-3 * torch.randn(())", "behaviour::same-answer-every-time", "the same model again"),
    (FORWARD, "print('x' * 100_000)", "behaviour::prints-little", "1,000,010 bytes"),
    (FORWARD, "os.write(1, b'x' * 100_000)", "behaviour::prints-little", "1,000,000 bytes"),
    (FORWARD, "KEPT.append(torch.zeros(1000))", f"{GROWTH}tensors", "4000 bytes a pass"),
    (FORWARD, "KEPT.append([0.0] * 1000)", f"{GROWTH}Python objects", "bytes a pass"),
    (ANSWER, "KEPT.append(bytes(range(256)) * 160_000)", f"{GROWTH}the process", "bytes a pass"),
]


@pytest.mark.parametrize(("where", "line", "check", "message"), NAUGHTY, ids=lambda value: str(value)[:40])
def test_misbehaviour_is_named_and_restored(shipped, tmp_path, where, line, check, message):
    runner = make_runner(subject(tmp_path, where, line))
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), os.getcwd(), dict(os.environ)
    record = runner.run(shipped[check])
    assert record.verdict == "fail"
    assert message in record.message
    after = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), os.getcwd(), dict(os.environ)
    assert before == after
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("where", [FORWARD, CONSTRUCTION])
def test_a_subject_that_behaves_passes_every_check_on_behaviour(shipped, tmp_path, where):
    runner = make_runner(subject(tmp_path, where, "pass"))
    records = [runner.run(check) for name, check in shipped.items() if name.startswith("behaviour::")]
    assert [record.message for record in records if record.verdict != "pass"] == []
    assert not [record.details for record in records if record.details.get("changed")]


def test_what_the_import_changes_is_put_back_and_named(shipped, tmp_path):
    (tmp_path / "mine.py").write_text("import torch\ntorch.set_default_dtype(torch.float64)\nfrom gpt import GPT")
    runner = make_runner(f"{tmp_path}/mine.py:GPT")
    assert torch.get_default_dtype() == torch.float32
    assert "the default dtype: torch.float32 -> torch.float64, on import" in runner.run(shipped[STATE]).message


def test_what_a_check_found_changed_is_on_its_record(shipped, tmp_path):
    runner = make_runner(subject(tmp_path, CONSTRUCTION, "torch.set_num_threads(3)"))
    record = runner.run(shipped["parity::debug,weights=probe,compare=logits"])
    assert record.verdict == "pass"
    assert record.details["changed"] == {"the number of threads": f"{torch.get_num_threads()} -> 3"}


def test_an_error_names_what_was_changed_on_the_way(shipped, tmp_path):
    runner = make_runner(subject(tmp_path, FORWARD, "torch.set_grad_enabled(False)"))
    record = runner.run(shipped["behaviour::writes-not-into-its-input"])
    assert "on the way it changed gradients (on -> off)" in record.message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("while True: pass", "did not answer within 1 s: it was at {}:AT in forward"),
        ("time.sleep(1000)", "did not answer within 1 s: it was at {}:AT in forward"),
        (
            "n = 0\nwhile True:\n  try:\n    time.sleep(99)\n  except BaseException:\n    n += 1\n    if n > 1: raise",
            "did not answer within 1 s: it was at ",
        ),
        ("sys.exit(3)", "SystemExit: 3 at {}:AT in forward"),
        ("raise MemoryError", "MemoryError: at {}:AT in forward"),
        ("return self.forward(idx)", "RecursionError: "),
    ],
)
def test_a_subject_that_never_answers_costs_one_check_and_the_others_say_why(shipped, tmp_path, line, message):
    # What does not hang has time enough on a busy machine, too.
    runner = make_runner(subject(tmp_path, FORWARD, line), seconds=1.0 if "within 1 s" in message else 20.0)
    names = ("behaviour::builds-and-answers", "parity::debug,weights=probe,compare=logits", "behaviour::prints-little")
    started = time.monotonic()
    first, *others = (runner.run(shipped[name]) for name in names)
    assert first.verdict == "error"
    assert message.replace("{}:AT", f"{tmp_path}/naughty.py:{AT}") in first.message.replace("  ", " ")
    assert [each.verdict for each in others] == ["error"] * 2
    assert all(each.message.startswith("not run: it cannot be built and called at size debug") for each in others)
    assert "see behaviour/builds-and-answers" in others[0].message
    assert time.monotonic() - started < 10


def test_a_subject_whose_loss_fails_is_judged_by_its_logits(shipped, tmp_path):
    runner = make_runner(subject(tmp_path, FORWARD, "assert targets is None"))
    names = ("behaviour::builds-and-answers", "attention::rows-do-not-mix")
    lost, logits = (runner.run(shipped[name]) for name in names)
    assert (lost.verdict, logits.verdict) == ("error", "pass")


def test_a_check_that_hangs_while_the_model_answers_is_not_tried_again_at_once(shipped, tmp_path):
    runner = make_runner(subject(tmp_path, FORWARD, "self.training and time.sleep(1000)"), seconds=1.0)
    hung, again = (runner.run(shipped[name]) for name in ["structure::training-mode-differs-by-dropout-alone"] * 2)
    assert "did not answer within 1 s" in hung.message
    assert again.message.startswith("not run: training_against_evaluation hung before")
    assert runner.run(shipped["parity::debug,weights=probe,compare=logits"]).verdict == "pass"


def test_the_alarm_is_silent_afterwards_and_leaves_the_signal_as_it_was():
    before = signal.getsignal(signal.SIGALRM)
    with alarm(0.2):
        pass
    time.sleep(0.3)
    assert signal.getsignal(signal.SIGALRM) is before
    with pytest.raises(TooLong), alarm(0.1):
        time.sleep(10)


def test_no_more_than_the_beginning_of_what_is_printed_is_kept():
    output = CapturedOutput()
    with captured_output(output):
        for _ in range(100):
            print("x" * 100_000)
        os.write(2, b"y" * 1000)
        subprocess.run([sys.executable, "-c", "print('z' * 500)"], check=True)
    assert output.size == 100 * 100_001 + 1000 + 501
    assert output.begins == "x" * 1000
    assert shorten("q" * 5000).count("q") == 2000
    assert "3,000 characters left out" in shorten("a" * 5000).replace("[... ", "")


# In a process of its own.


@pytest.mark.parametrize(
    ("line", "seconds", "message"),
    [
        ("os._exit(7)", 60, "ProcessExit: os._exit(7) would have ended the process that judges it at {}:AT in forward"),
        ("ctypes.CDLL(None)._exit(7)", 60, "the process exited with status 7"),
        ("ctypes.string_at(0)", 60, "the process ended with SIGSEGV: it was at {}:AT in forward"),
        ("os.kill(os.getpid(), 9)", 60, "the process ended with SIGKILL"),
        ("re.match('(a+)+$', 'a' * 60 + 'b')", 10, "did not answer within 10 s: it was at {}:AT in forward"),
        # Long, because a busy machine gave less than 2 GiB in 15 s.
        ("KEPT.append(bytearray(2 << 30))", 120, "exceeded 1 GiB of memory: it was at {}:AT in forward"),
        ("raise KeyboardInterrupt", 60, "KeyboardInterrupt: at {}:AT in forward"),
    ],
)
def test_an_isolated_subject_ends_neither_the_run_nor_the_other_checks(shipped, tmp_path, line, seconds, message):
    """Only in training mode, so that there is another check to pass."""
    spec = subject(tmp_path, FORWARD, f"if self.training: {line}")
    runner = make_runner(spec, isolate=True, seconds=float(seconds), memory_gib=1.0)
    try:
        bad = runner.run(shipped["structure::training-mode-differs-by-dropout-alone"])
        good = runner.run(shipped["parity::debug,weights=probe,compare=logits"])
    finally:
        runner.close()
    assert (bad.verdict, good.verdict) == ("error", "pass")
    assert message.replace("{}:AT", f"{tmp_path}/naughty.py:{AT}") in bad.message.replace("  ", " ")


def test_an_isolated_subject_has_the_verdicts_that_it_has_in_this_process(shipped, tmp_path):
    spec = subject(tmp_path, FORWARD, "torch.rand(1)")
    names = [STATE, "parity::debug,weights=probe,compare=blocks", "generation::seed-decides"]
    here, apart = make_runner(spec), make_runner(spec, isolate=True)
    try:
        for name in names:
            expected, found = here.run(shipped[name]), apart.run(shipped[name])
            assert (found.verdict, found.message, found.where) == (expected.verdict, expected.message, expected.where)
            assert found.value == expected.value
    finally:
        apart.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import ctypes\nctypes.string_at(0)",
            "does not import: the process ended with SIGSEGV: it was at *mine.py:2*",
        ),
        ("while True: pass", "does not import within 1 s: it was at *mine.py:1*"),
        ("GTP = 1", "*mine.py has no 'GPT'*"),
    ],
)
def test_an_isolated_subject_that_cannot_be_imported_is_an_error_of_one_line(tmp_path, text, message):
    import fnmatch

    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(SubjectError) as raised:
        make_runner(f"{tmp_path}/mine.py:GPT", isolate=True, seconds=1.0)
    assert fnmatch.fnmatch(str(raised.value), message)


def test_megabytes_of_output_do_not_bury_the_verdict(project):
    line = "[print('x' * 1000) for _ in range(2000)]; [logging.warning('y' * 100) for _ in range(1000)]"
    subject(project.path, FORWARD, f"{line}; raise ValueError('no')")
    result = project.runpytest("--subject", "naughty.py:GPT")
    text = result.stdout.str()
    assert len(text) < 20_000
    result.stdout.fnmatch_lines(["ValueError: no at naughty.py:13 in forward", "  printed   *bytes, beginning 'xxx*"])


def test_a_subject_that_cannot_be_called_is_told_once_in_full(project):
    subject(project.path, FORWARD, "raise ValueError('no')")
    result = project.runpytest("--subject", "naughty.py:GPT")
    result.assert_outcomes(passed=1, failed=4)
    text = result.stdout.str()
    assert text.count("  subject   naughty.py:GPT") == 1
    result.stdout.fnmatch_lines(
        [
            "3 more not run: it cannot be built and called at size debug: ValueError: no at naughty.py:13 in forward*",
            "look at    naughty.py:13 in forward",
            "run again  pytest verifications/small.toml::parity,compare=blocks --subject naughty.py:GPT",
        ]
    )


def test_a_limit_of_memory_without_a_process_of_its_own_is_a_usage_error(project):
    result = project.runpytest("--memory-limit", "4", "--no-isolate")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --memory-limit * add --isolate"])


def many(verdict, count, **details):
    return [
        {
            "kind": "record",
            "id": f"verifications/suite{n % 9}.toml::check-{n},size=debug",
            "suite": f"suite{n % 9}",
            "check": f"check-{n}",
            "subject": "my_gpt.py:GPT",
            "verdict": verdict,
            "message": "found something that is long to tell " * 10,
            "seconds": 0.1,
            "rerun": f"pytest verifications/suite.toml::check-{n} --subject my_gpt.py:GPT",
            "details": details,
        }
        for n in range(count)
    ]


def test_the_review_of_a_failing_subject_fits_on_one_screen():
    finding = dict.fromkeys(("where", "fault", "source", "text"), "mine.py:3") | {"cause": "c " * 90, "evidence": "e"}
    skips = [{**row, "message": f"it has no ability {n}"} for n, row in enumerate(many("skip", 40))]
    rows = [*many("pass", 60), *many("fail", 50), *many("error", 9, because="not run"), *skips]
    found = {"my_gpt.py:GPT": {"findings": [finding] * 7}}
    lines = list(summary(rows, found, excepted={}, scripts={"my_gpt.py:GPT": "reports/reproduce_my_gpt.py"}))
    assert len(lines) <= 40
    assert max(len(line.text) for line in lines if not line.text.startswith("run again")) <= 110


@pytest.mark.parametrize("surroundings", ["a terminal", "CI"])
def test_every_failure_in_full_is_an_option(project, monkeypatch, surroundings):
    """In CI pytest's short summary is not cut: a failure message as plain text stood there a second time, whole."""
    monkeypatch.delenv("CI", raising=False)
    if surroundings == "CI":
        monkeypatch.setenv("CI", "true")
    (project.path / "mine.py").write_text(
        "import gpt\nfrom gpt import GPTConfig\nclass GPT(gpt.GPT):\n"
        "    def forward(self, *a, **k):\n        y, l = super().forward(*a, **k)\n"
        "        return y * 1.01, None if l is None else l * 1.01"
    )
    message = "  subject   mine.py:GPT"
    few = project.runpytest("--subject", "mine.py:GPT", "--no-diagnosis").stdout.str().count(message)
    every = (
        project.runpytest("--subject", "mine.py:GPT", "--no-diagnosis", "--full-failures").stdout.str().count(message)
    )
    assert (few, every) == (1, 3)


def test_a_record_survives_the_way_from_another_process(shipped, tmp_path):
    from harness.core.record_files import decode, encode
    from harness.suites.record import Record

    check = shipped["parity::debug,weights=probe,compare=blocks"]
    record = make_runner(subject(tmp_path, ANSWER, "logits = logits * float('nan')")).run(check)
    again = Record.from_row(check, decode(encode(record.as_row())))
    assert again.as_row() == record.as_row()


def test_limits_are_none_by_default_for_whoever_calls_the_core(shipped):
    assert Limits() == Limits(None, None)
