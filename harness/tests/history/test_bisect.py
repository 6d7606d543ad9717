"""Two revisions side by side: times come from their own processes, answers are compared, and the commit is found."""

import argparse
import subprocess
import time
from pathlib import Path

import pytest
import torch

import gpt
from harness import cli
from harness.bench.comparison import TWIN_SUFFIX
from harness.bench.statistics import Ratio
from harness.bench.work import Work
from harness.commands.bisect_perf import Revisions, choose, compare_revisions
from harness.core.errors import HarnessError
from harness.core.record_files import RecordWriter, read
from harness.core.sizes import SIZES
from harness.history import worker_process
from harness.history.bisect import bisect, is_past_change
from harness.history.compare_revisions import NEW, OLD, SameAnswerVerifier, measure_revisions
from harness.history.git_revisions import checkout, commits_between
from harness.history.jobs import Job, WorkerSettings, check_origin, list_jobs
from harness.history.worker import tensors
from harness.history.worker_process import start_workers

JOB = Job("tiny", "forward", None, None, "plain")
ANSWER = torch.linspace(1, 2, 30).reshape(5, 6)


# In place of a model: a file of the revision, with the number of its products and its answer.
TINY = """
import torch
from harness.bench.work import Work

MATRIX = torch.eye(192)

def call():
    for _ in range({times}):
        MATRIX @ MATRIX

def build(settings, job):
    print("a subject may print what it likes")
    return Work(call=call, answer=lambda: torch.linspace(1, 2, 30).reshape(5, 6) * {factor}, tokens=1)
"""


def git(folder, *arguments):
    named = ("-c", "user.name=tester", "-c", "user.email=tester@example.org", "-c", "core.hooksPath=/dev/null")
    answer = subprocess.run(["git", "-C", folder, *named, *arguments], capture_output=True, text=True, check=True)
    return answer.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Four commits: twice a fast one, a slow one (the change), a slow one with another answer."""
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "-q")
    contents = {"start": (20, 1), "still fast": (20, 1), "slow": (80, 1), "wrong": (81, 1.001)}
    for message, (times, factor) in contents.items():
        (folder / "tiny.py").write_text(TINY.format(times=times, factor=factor) + f"# {message}\n")
        git(folder, "add", "tiny.py")
        git(folder, "commit", "-q", "-m", message)
    return folder


def settings(**fields):
    return WorkerSettings(tree="", subject="tiny.py:GPT", size="debug", threads=1, build="tiny:build", **fields)


def test_the_slower_revision_is_reported_its_commit_named_and_nothing_left_behind(repository, tmp_path, capsys):
    """End to end, in processes: three at once, and then two for the one commit between."""
    revisions = Revisions(repository, Path(), settings())
    options = argparse.Namespace(old="HEAD~3", new="HEAD~1", bisect=True, seconds=0.5)
    recorder = RecordWriter(tmp_path / "bisect.jsonl", {"run": "bisect"})
    assert compare_revisions(revisions, [JOB], options, recorder) == 1
    output = capsys.readouterr().out
    whole = read(tmp_path / "bisect.jsonl")[1]
    ratios = {ratio["arm"]: ratio for ratio in whole["ratios"]}
    assert ratios[NEW]["verdict"] == "SLOWER"
    assert ratios[NEW]["ratio"] > 2, "four times the products"
    assert 1 / 2 < ratios[OLD + TWIN_SUFFIX]["ratio"] < 2
    assert output.rstrip().splitlines()[-3].endswith(" slow"), output
    assert "the change came with" in output
    assert git(repository, "worktree", "list").count("\n") == 1
    assert "may print" not in output


def test_a_revision_with_another_answer_does_not_do_the_same_work(repository):
    revisions = Revisions(repository, Path(), settings())
    with revisions.start_workers({OLD: "HEAD~1", NEW: "HEAD"}) as processes:
        measured = measure_revisions(processes, JOB, size="debug", seconds=0.2)
        assert measured.verifications[NEW].verdict == "fail"
        assert "not the same work: relative error 1.0e-03" in measured.verifications[NEW].message
        assert NEW not in measured.seconds


def test_a_process_that_dies_and_a_request_that_fails_are_errors_and_not_waited_for(repository):
    with start_workers({OLD: repository}, settings(), Path()) as processes:
        with pytest.raises(HarnessError, match="AttributeError"):
            processes[OLD].request("fly")
        processes[OLD]._process.kill()
        with pytest.raises(HarnessError, match="the worker process died during 'call'"):
            processes[OLD].request("call")


def test_ctrl_c_ends_the_processes_and_removes_the_worktrees(repository):
    revisions = Revisions(repository, Path(), settings())
    started = []

    def interrupted():
        with revisions.start_workers({OLD: "HEAD~1", NEW: "HEAD"}) as processes:
            started.extend(processes.values())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(process._process.poll() is not None for process in started)
    assert git(repository, "worktree", "list").count("\n") == 1


# Without processes.


class FakeProcess:
    """A worker process that answers at once that a call took `seconds`."""

    def __init__(self, seconds, answer=ANSWER):
        self.seconds, self.result = seconds, answer

    def request(self, action, path=None, **details):
        if action == "answer":
            from safetensors.torch import save_file

            save_file(tensors(self.result), path)
        return {"seconds": self.seconds, "tokens": 1, "computes": "float32"}


def test_the_seconds_are_those_that_the_process_measured(monkeypatch):
    """Not those of sending requests: here no call takes any time."""
    monkeypatch.setattr(worker_process, "SETTLE_SECONDS", 0)
    began = time.perf_counter()
    found = measure_revisions({OLD: FakeProcess(0.3), NEW: FakeProcess(0.6)}, JOB, size="debug", seconds=10)
    assert found.ratios[NEW].ratio == pytest.approx(2)
    assert max(found.seconds[OLD]) - min(found.seconds[OLD]) < 1e-6
    assert 0 < len(found.seconds[OLD]) < 15, "the budget is of measured seconds"
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        (ANSWER * (1 + 1e-7), "pass"),
        (ANSWER * (1 + 1e-3), "fail"),
        (ANSWER[:, :5], "fail"),
        (ANSWER.log().log(), "fail"),
        ([1, 2, 3], "fail"),
    ],
)
def test_answers_are_the_same_within_rounding_or_not_at_all(other, verdict):
    verify = SameAnswerVerifier("debug")
    works = {name: Work(lambda: None, lambda a=a: tensors(a), 1) for name, a in ((OLD, ANSWER), (NEW, other))}
    assert verify(OLD, works[OLD]).verdict == "pass"
    assert verify(NEW, works[NEW]).verdict == verdict


def test_whole_numbers_must_be_equal():
    verify = SameAnswerVerifier("debug")
    assert verify(OLD, Work(lambda: None, lambda: tensors(7), 1)).verdict == "pass"
    assert verify(NEW, Work(lambda: None, lambda: tensors(7), 1)).verdict == "pass"
    assert verify(NEW, Work(lambda: None, lambda: tensors(8), 1)).verdict == "fail"


@pytest.mark.parametrize("first_changed", range(7))
def test_bisection_finds_the_first_changed_commit_in_as_few_steps_as_there_are_bits(first_changed):
    commits = list("abcdefg")
    judged = []

    def has_changed(commit):
        judged.append(commit)
        return commits.index(commit) >= first_changed

    assert bisect(commits, has_changed).commit == commits[first_changed]
    assert len(judged) <= 3


def test_a_commit_that_cannot_be_judged_stays_a_suspect():
    found = bisect(list("abcdefg"), lambda commit: None if commit in "cd" else commit >= "e")
    assert (found.commit, found.suspects) == ("e", ["c", "d"])
    found = bisect(list("abcdefg"), lambda commit: None if commit == "d" else commit >= "f")
    assert (found.commit, found.suspects) == ("f", [])


def ratio(middle, width=1.1):
    return Ratio(middle, middle / width, middle * width, 12, "UNRESOLVED", 0.1, 0.5)


def test_a_commit_is_on_the_side_of_the_nearer_end_unless_noise_hides_it():
    assert is_past_change(ratio(1.9), ratio(2.0)) is True
    assert is_past_change(ratio(1.05), ratio(2.0)) is False
    assert is_past_change(ratio(1.45), ratio(2.0)) is None
    assert is_past_change(ratio(0.52), ratio(0.5)) is True
    assert is_past_change(ratio(0.98), ratio(0.5)) is False


# Revisions, and the command line.


def test_a_revision_is_its_own_files_and_a_dot_the_working_tree(repository):
    with checkout(repository, "HEAD~3") as tree:
        assert "# start" in (tree / "tiny.py").read_text()
    assert not tree.exists()
    with checkout(repository, ".") as tree:
        assert tree == repository


def test_an_unknown_revision_and_a_range_without_commits_are_errors_of_one_line(repository):
    with pytest.raises(HarnessError, match="it names no commit"), checkout(repository, "HEAD~9"):
        pass
    with pytest.raises(HarnessError, match="the older revision first"):
        commits_between(repository, "HEAD", "HEAD~1")
    with pytest.raises(HarnessError, match="the working tree is none"):
        commits_between(repository, "HEAD", ".")
    assert len(commits_between(repository, "HEAD~3", "HEAD")) == 3


def test_every_arm_of_the_subject_can_be_selected_and_a_word_that_selects_none_is_an_error():
    known = list_jobs(SIZES["124M"])
    (chosen,) = choose(known, "precision forward bf16-autocast", one=True)
    assert chosen == Job("precision", "forward", "tokens", 256, "bf16-autocast")
    with pytest.raises(HarnessError, match="did you mean 'precision'"):
        choose(known, "precison", one=False)
    with pytest.raises(HarnessError, match="--bisect is for one arm"):
        choose(known, "attention", one=True)


SUBJECT = """
import gpt

class GPT(gpt.GPT):
    def __init__(self, config: gpt.GPTConfig, *, seed=None, device=None):
        super().__init__(config, seed=seed, device=device)
"""


def test_the_arms_of_the_comparisons_run_around_the_revisions_own_subject(tmp_path, monkeypatch, capsys):
    """From the command line; the working tree has the same code as the commit, so the answers are equal to the bit."""
    git(tmp_path, "init", "-q")
    (tmp_path / "mine.py").write_text(SUBJECT)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "mine")
    monkeypatch.chdir(tmp_path)
    words = ("-k", "precision forward fp32", "--subject", "mine.py:GPT")
    status = cli.main(("bisect-perf", "--size", "debug", "--seconds", "0.2", "--threads", "1", *words))
    assert "relative error 0.0e+00" in capsys.readouterr().out
    assert status in (0, 1), "two identical revisions on a busy machine"
    assert list((tmp_path / "reports" / "records").glob("bisect-*.jsonl"))


def test_a_subject_that_is_not_the_revisions_own_is_refused(tmp_path):
    """Otherwise both revisions would run the same code, and always be equally fast."""
    with pytest.raises(HarnessError, match="not in the revision"):
        check_origin(WorkerSettings(str(tmp_path), "gpt:GPT", "debug"))
    check_origin(WorkerSettings(str(Path(gpt.__file__).parents[1]), "gpt:GPT", "debug"))
