"""`gpt-harness sweep`, from the command line to the page: with a trainer that trains nothing, and with tables."""

import csv
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import cli
from harness.core.record_files import read
from harness.lessons import execution, trainer_process
from harness.report.plot import Plot
from harness.sweeps import cluster
from harness.tests.lessons.signals import signal_when, wait_for
from harness.tests.sweeps import fake_trainer
from harness.tests.sweeps.small_plan import SMALL

ROOT = Path(__file__).parents[3]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Have the command do twelve runs of a fake trainer in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainer_process, "TRAINER", "harness.tests.sweeps.fake_trainer")
    monkeypatch.setattr(execution, "POLL", 0.02)
    monkeypatch.setattr(Plot, "save", lambda plot, folder: [])  # drawing takes a second
    Path("small.toml").write_text(SMALL)
    return tmp_path


def newest():
    return read(max(Path("reports/records").glob("sweep-*.jsonl")))


def fit(rows, approach):
    return next(row for row in rows if (row.get("approach"), row.get("count")) == (approach, "all"))


def starts():
    return {path.parent.name: len(path.read_text()) for path in Path("reports/sweeps/small").glob("*/starts")}


def test_a_sweep_has_runs_records_fits_and_a_page_that_reads_them_again(small, capsys):
    assert cli.main(["sweep", "--plan", "small.toml", "--jobs", "2"]) == 0
    rows = newest()
    runs = [row for row in rows if row["kind"] == "run"]
    assert len(runs) == 12
    assert rows[-1]["complete"] is True
    assert all(run["loss"] > 1.3 for run in runs)
    exponent, low, high = fit(rows, "iso-flop")["values"]["size_exponent"]
    truth = fake_trainer.BETA / (fake_trainer.ALPHA + fake_trainer.BETA)
    assert low - 0.1 < truth < high + 0.1, exponent  # three sizes a budget, far from symmetric
    _, low, high = fit(rows, "parametric")["values"]["E"]
    assert low < fake_trainer.E < high
    assert {row["count"] for row in rows if row["kind"] == "fit"} == {"all", "non-embedding"}
    page = Path("reports/sweep.md").read_text()
    assert "12 of 12 runs" in page
    assert "The entropy of markov is" in page
    printed = capsys.readouterr().out
    assert "N_opt ~ C^" in printed
    # The table that the page links to is one that --fit reads.
    assert cli.main(["sweep", "--fit", "reports/tables/sweep-runs.csv", "--output", "again"]) == 0
    again = read(next(Path("again/records").glob("*.jsonl")))
    assert again[-1]["complete"] is True
    assert fit(again, "parametric")["values"]["E"] == pytest.approx(fit(rows, "parametric")["values"]["E"])
    assert fit(again, "iso-flop")["values"]["size_exponent"][0] == pytest.approx(exponent)


def test_a_finished_run_is_not_repeated_and_the_fit_is_the_same(small, capsys):
    assert cli.main(["sweep", "--plan", "small.toml"]) == 0
    before = fit(newest(), "parametric")["values"]
    assert cli.main(["sweep", "--plan", "small.toml"]) == 0
    assert "12 of 12 runs were finished before" in capsys.readouterr().err
    assert set(starts().values()) == {1}
    assert fit(newest(), "parametric")["values"] == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_next_command_resumes(small, monkeypatch, capsys, number, status):
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.05")
    signal_when(lambda: len(starts()) > 3, number)
    assert cli.main(["sweep", "--plan", "small.toml"]) == status
    assert "NOT FINISHED" in capsys.readouterr().out
    assert newest()[-1]["complete"] is False
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0")
    assert cli.main(["sweep", "--plan", "small.toml"]) == 0
    assert len(starts()) == 12
    assert sum(starts().values()) == 13  # one was stopped in the middle


def test_a_command_that_is_killed_in_the_middle_goes_on_and_fits_what_it_would_have(small, monkeypatch):
    """kill -9 of the command: its trainers end with it, nothing that was finished is done again."""
    assert cli.main(["sweep", "--plan", "small.toml", "--output", "whole"]) == 0
    whole = fit(read(next(Path("whole/records").glob("*.jsonl"))), "parametric")["values"]
    script = (
        "import sys; from harness.lessons import trainer_process as t; "
        "t.TRAINER = 'harness.tests.sweeps.fake_trainer'; "
        "from harness import cli; sys.exit(cli.main(['sweep', '--plan', 'small.toml']))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FAKE_STEP_SECONDS": "0.2"}
    command = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(starts()) > 1, seconds=60)
    finally:
        os.kill(command.pid, signal.SIGKILL)
        command.wait()
    (last,) = [name for name in starts() if not json.loads(state(name).read_text())["finished"]]
    wait_for(lambda: "terminated" in state(last).with_name("log.jsonl").read_text())
    assert cli.main(["sweep", "--plan", "small.toml"]) == 0
    assert {name: count for name, count in starts().items() if count > 1} == {last: 2}
    assert fit(newest(), "parametric")["values"] == whole


def state(name):
    return Path("reports/sweeps/small", name, "lesson.json")


def test_the_budget_of_minutes_leaves_runs_for_the_next_time(small, monkeypatch):
    monkeypatch.setattr(execution, "LEAST_MINUTES", 0.0)
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.01")
    assert cli.main(["sweep", "--plan", "small.toml", "--budget-minutes", "0.01"]) == 3
    assert 0 < len(starts()) < 12
    assert cli.main(["sweep", "--plan", "small.toml"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "0"], "--jobs of 1 or more"),
        (["--budget-minutes", "-1"], "--budget-minutes of 0 or more"),
        (["--plan", "none"], "no sweep is called 'none'"),
        (["--fit", "none.csv"], "none.csv"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(small, options, message, capsys):
    assert cli.main(["sweep", *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_without_ray_the_message_says_how_to_get_it_and_what_to_do_instead(small, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["sweep", "--plan", "small.toml", "--ray"]) == 2
    assert "pip install 'gpt-harness[sweep]'" in capsys.readouterr().err
    assert not Path("reports").exists()


class InlineRay:
    """As much of ray as a sweep uses: tasks are done in this process, each when it is waited for."""

    def __init__(self):
        self.cancelled = []

    def init(self, **options):
        """Do nothing."""

    shutdown = init

    def remote(self, function):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=partial(partial, function)))

    def put(self, value):
        return value

    def wait(self, references, num_returns, timeout):
        return references[:1], references[1:]

    def get(self, reference):
        return reference()

    def cancel(self, reference, force):
        self.cancelled.append(reference)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_on_a_cluster_too_a_signal_saves_what_is_done(small, monkeypatch, number, status):
    """Only KeyboardInterrupt was caught, so SIGTERM ended the command without records."""
    ray = InlineRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(cluster, "train", stopped_after(4, number))
    assert cli.main(["sweep", "--plan", "small.toml", "--ray"]) == status
    rows = newest()
    assert sum(row["kind"] == "run" for row in rows) == 4
    assert rows[-1]["complete"] is False
    assert set(rows[-1]["unfinished"].values()) == {"stopped before its end; it starts again"}
    assert len(ray.cancelled) == 8


def stopped_after(runs, number):
    """Return the task of a sweep that sends this process a signal in its n-th run."""
    done = []

    def train(*arguments):
        done.append(arguments)
        if len(done) == runs:
            os.kill(os.getpid(), number)
        return cluster_train(*arguments)

    cluster_train = cluster.train
    return train


def test_a_local_cluster_of_two_workers_does_what_one_machine_does(small, monkeypatch):
    pytest.importorskip("ray", reason="the package ray is not installed")
    from ray.cluster_utils import Cluster

    from harness.tests.sweeps.on_ray import with_fake_trainer

    assert cli.main(["sweep", "--plan", "small.toml", "--output", "alone"]) == 0
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        machines.add_node(num_cpus=1)
        monkeypatch.setattr(cluster, "train", with_fake_trainer)  # the workers are other processes
        assert cli.main(["sweep", "--plan", "small.toml", "--ray", machines.address]) == 0
    finally:
        machines.shutdown()
    alone = read(next(Path("alone/records").glob("*.jsonl")))
    assert {run["name"]: run["loss"] for run in newest() if run["kind"] == "run"} == {
        run["name"]: run["loss"] for run in alone if run["kind"] == "run"
    }
    assert fit(newest(), "parametric")["values"] == fit(alone, "parametric")["values"]


def table(path, columns, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


def test_anybody_s_table_is_fitted_whatever_its_columns_are_called(small, capsys):
    cells = [(N, N * ratio) for N in (1e6, 4e6, 2e7, 9e7) for ratio in (5, 30, 200)]
    rows = [(N, D, 2 + 40 * N**-0.4 + 60 * D**-0.35) for N, D in cells]
    path = table(Path("runs.csv"), ["Model Size", "n_tokens", "val_loss"], rows)
    assert cli.main(["sweep", "--fit", path, "--output", "out"]) == 0
    values = fit(read(next(Path("out/records").glob("*.jsonl"))), "parametric")["values"]
    found = [values[name][0] for name in ("E", "alpha", "beta")]
    assert found == pytest.approx([2.0, 0.4, 0.35], rel=1e-4)
    assert "no fit: it needs two budgets" in capsys.readouterr().out
