"""The log and the progress line: whole lines on disk, and what a person sees while a run goes on."""

import io
import json
import sys
import types

import pytest

from gpt.errors import PackageMissing, RunError
from gpt.training import progress as progress_module
from gpt.training.progress import Progress, duration
from gpt.training.run_log import RunLog, read_log, require_tensorboard, truncate_log


def test_an_event_is_one_line_written_with_one_call(tmp_path, monkeypatch):
    """Two calls, and a process that is killed between them leaves half a line."""
    log = RunLog(tmp_path / "log.jsonl")
    writes = []
    monkeypatch.setattr(log, "_file", types.SimpleNamespace(write=lambda raw: writes.append(raw) or len(raw)))
    log.write("sample", step=3, text='line\nbreak "quoted" é\u2028 \ud800')
    assert len(writes) == 1
    assert writes[0].count(b"\n") == 1
    assert json.loads(writes[0]) == {"event": "sample", "step": 3, "text": 'line\nbreak "quoted" é\u2028 ?'}


def test_values_that_are_not_finite_are_null(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.write("step", step=0, norm=float("inf"), loss=float("nan"), lr=0.1, mfu=None)
    log.close()
    assert read_log(tmp_path / "log.jsonl") == [
        {"event": "step", "step": 0, "norm": None, "loss": None, "lr": 0.1, "mfu": None}
    ]


def test_a_full_disk_is_a_named_error(tmp_path, monkeypatch):
    log = RunLog(tmp_path / "log.jsonl")

    def full(raw):
        raise OSError(28, "No space left on device")

    for write, message in ((full, "No space left on device"), (lambda raw: 5, "only 5 of 29 bytes were written")):
        monkeypatch.setattr(log, "_file", types.SimpleNamespace(write=write))
        with pytest.raises(RunError, match=rf"log.jsonl: .*{message}.*make room and resume"):
            log.write("step", step=0)
    with pytest.raises(RunError, match="cannot be written"):
        RunLog(tmp_path / "none" / "log.jsonl")


STEPS = [{"event": "step", "step": step} for step in range(4)]  # the updates 0 to 3: 4 completed steps


def write(path, *parts):
    path.write_bytes(b"".join(part if isinstance(part, bytes) else json.dumps(part).encode() + b"\n" for part in parts))


def test_what_came_after_a_checkpoint_is_removed(tmp_path):
    """The step numbered 2 comes after 2 completed steps; the validation after 2 steps does not."""
    path = tmp_path / "log.jsonl"
    other = [{"event": name, "step": step} for step in (0, 2, 3) for name in ("header", "validation", "checkpoint")]
    write(path, *STEPS, *other, {"event": "end", "step": 4})
    truncate_log(path, 2, {"validation": 2, "sample": 2})
    assert read_log(path) == STEPS[:2] + other[:6]
    truncate_log(path, 0, {"validation": 0, "sample": 0})
    assert read_log(path) == other[:3]
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_what_a_checkpoint_of_the_same_step_does_not_know_of_is_removed(tmp_path):
    """It was saved before the validation and the sample of its step, which the resumed run repeats."""
    path = tmp_path / "log.jsonl"
    names = {"validation": None, "sample": None, "checkpoint": "best"}
    first, second = ([{"event": kind, "step": step, "name": name} for kind, name in names.items()] for step in (1, 2))
    saved = {"event": "checkpoint", "step": 2, "name": "step-00000002"}
    write(path, *first, saved, *second)
    truncate_log(path, 2, {"validation": 2, "sample": 1})
    assert read_log(path) == [*first, saved, second[0], second[2]]
    truncate_log(path, 2, {"validation": 1, "sample": 1})
    assert read_log(path) == [*first, saved]


def test_half_a_line_at_the_end_is_removed(tmp_path):
    path = tmp_path / "log.jsonl"
    for half in (b'{"event": "step", "st', b'{"event": "step", "step": 1}', b"\x80"):
        write(path, *STEPS[:1], half)
        assert read_log(path) == STEPS[:1]
        truncate_log(path, 2, {})
        assert path.read_bytes() == json.dumps(STEPS[0]).encode() + b"\n"


def test_a_damaged_line_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "log.jsonl"
    for bad in (b"hello\n", b"[]\n", b"{}\n", b'{"event": "step"}\n', b"\xff\n"):
        write(path, STEPS[0], bad, STEPS[1])
        before = path.read_bytes()
        with pytest.raises(RunError, match=r"log.jsonl:2: is no event of a log .*; remove the line to go on"):
            truncate_log(path, 1, {})
        assert path.read_bytes() == before


def test_a_log_that_is_missing_is_an_empty_one(tmp_path):
    truncate_log(tmp_path / "log.jsonl", 5, {})
    assert read_log(tmp_path / "log.jsonl") == []


# ---------------------------------------------------------------------------- TensorBoard


def test_a_missing_tensorboard_is_a_named_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(PackageMissing, match=r"--tensorboard needs the package tensorboard.*install it, or leave"):
        require_tensorboard()


def test_tensorboard_has_the_numbers_of_steps_and_validations(tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, *arguments):
            calls.append(arguments)

        def close(self):
            calls.append("closed")

    fake = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    log = RunLog(tmp_path / "log.jsonl", tensorboard=tmp_path / "events", step=7)
    log.write("step", step=7, loss=2.0, norm=float("inf"), spike=None)
    log.write("validation", step=8, loss=3.0)
    log.write("sample", step=8, text="a")
    log.close()
    found = [(str(tmp_path / "events"), 7), ("step/loss", 2.0, 7), ("validation/loss", 3.0, 8), "closed"]
    assert calls == found


# ---------------------------------------------------------------------------- the progress line


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that the test sets, instead of the computer's."""
    found = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: found.now)
    return found


def show(stream, clock, steps, seconds, first=0, total=100):
    """Show the steps up to `steps` of 100, each of so many seconds and 50 tokens."""
    progress = Progress(total, stream=stream)
    progress.start(first)
    for step in range(first + 1, steps + 1):
        clock.now += seconds
        numbers = {"loss": 2.5, "val": None if step < 20 else 2.75, "lr": 6e-4, "norm": 0.5}
        progress.step(step, tokens=50, seconds=seconds / 2, numbers=numbers)
    return progress


def test_in_a_file_there_is_a_line_for_each_tenth(clock):
    stream = io.StringIO()
    show(stream, clock, 100, seconds=0.5)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 11  # the first step, and ten tenths
    assert lines[1] == "step  10/100   10%  loss 2.5000  lr 6.00e-04  norm 0.500  200 tok/s  45 s left"
    assert lines[-1] == "step 100/100  100%  loss 2.5000  val 2.7500  lr 6.00e-04  norm 0.500  200 tok/s"


def test_in_a_file_there_is_a_line_every_30_seconds(clock):
    stream = io.StringIO()
    show(stream, clock, 9, seconds=10.0)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/100", "4/100", "7/100"]


def test_a_resumed_run_shows_its_own_speed(clock):
    stream = io.StringIO()
    show(stream, clock, 95, seconds=2.0, first=90)
    assert stream.getvalue().splitlines()[0].endswith("50 tok/s  18 s left")


def test_on_a_terminal_the_line_is_rewritten_and_cut_to_its_width(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    progress = show(stream, clock, 100, seconds=0.01)
    shown = stream.getvalue()
    assert 9 <= shown.count("\r") <= 12  # ten times a second
    assert "\n" not in shown
    assert shown.split("\r")[-1].startswith("step 100/100")
    assert all(len(line.removesuffix("\x1b[K")) < 40 for line in shown.split("\r"))
    progress.message("sample")
    assert stream.getvalue().endswith("\nsample\n")


def test_a_quiet_one_prints_nothing(clock):
    stream = io.StringIO()
    progress = Progress(10, quiet=True, stream=stream)
    progress.start(0)
    progress.step(10, tokens=5, seconds=1.0, numbers={"loss": 1.0})
    progress.message("done")
    assert stream.getvalue() == ""


def test_times_are_readable():
    assert [duration(seconds) for seconds in (0.4, 59, 60, 125, 3600, 7500)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "2 min 5 s",
        "1 h 0 min",
        "2 h 5 min",
    ]
