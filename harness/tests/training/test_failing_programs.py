"""Programs that fail, hang, grow or write without end cost their rehearsal only, and say what to give."""

import os
import time
from pathlib import Path

import pytest

from harness.core.errors import SubjectError
from harness.core.limits import Limits
from harness.tests.training.tiny import script
from harness.training import child_processes
from harness.training.child.request import Request
from harness.training.child_processes import shared_processes
from harness.training.rehearsals import REHEARSALS


def test_a_program_that_fails_is_told_with_its_last_lines_and_is_not_run_again(program, tmp_path):
    ran = f"open('{tmp_path}/ran.txt', 'a').write('x')"
    made = program(script(before_step=f"{ran}\nprint('so far so good')\nraise OSError('full')"))
    for _ in range(2):
        with pytest.raises(SubjectError) as caught:
            made.record("plain")
    assert str(caught.value).startswith("train.py fails in the rehearsal 'plain': OSError: full at train.py:")
    assert str(caught.value).endswith("its last lines: so far so good")
    assert Path("ran.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("ends", "message", "seconds"),
    [
        ("import sys; sys.exit('no data')", "exited with status no data", 60.0),
        ("import os; os._exit(4)", ": exited with status 4", 60.0),
        ("import ctypes; ctypes.CDLL(None)._exit(4)", "the process exited with status 4", 60.0),
        ("import os; os.abort()", "the process ended with SIGABRT", 60.0),
        ("import time; time.sleep(60)", "did not end within 1 s", 1.0),
    ],
)
def test_a_program_that_ends_or_hangs_costs_its_rehearsal_only(program, ends, message, seconds):
    with pytest.raises(SubjectError, match=message):
        program(script(before_step=ends), limits=Limits(seconds, 8.0)).record("plain")


@pytest.mark.parametrize("end", ["os._exit(0)", "child = os.fork()\nif child == 0: os._exit(3)\nos.waitpid(child, 0)"])
def test_a_program_that_ends_by_os_exit_is_recorded_to_its_end(program, end):
    """Some do, not to wait for a thread. All of its checks failed: 'the process exited with status 0'."""
    recording = program(f"{script()}\nimport os\n{end}\n").record("plain")
    assert (len(recording.steps), recording.ended) == (12, "finished")


def test_a_program_that_makes_no_step_is_not_tried_in_each_rehearsal(program, monkeypatch):
    """A program that hangs took two minutes for each kind of rehearsal."""
    made = program("import time\nprint('hello')\ntime.sleep(60)\n", limits=Limits(1.0, 8.0))
    with pytest.raises(SubjectError, match="did not end within 1 s; its last lines: hello; it is too slow, or waits"):
        made.record("plain")
    monkeypatch.setattr(made, "_run", lambda *given: pytest.fail("it was run again"))
    with pytest.raises(SubjectError, match="did not end within 1 s"):
        made.record("straight")


@pytest.mark.parametrize(
    ("before_step", "advice"),
    [
        ("import argparse; p = argparse.ArgumentParser(); p.add_argument('--data', required=True); p.parse_args()",
         'give them: --trainer "train.py --data ..."'),
        ("input('Which text? ')", "it asks a question, and nobody answers here"),
        ("import no_such_package", "install no_such_package where pytest runs"),
        ("raise RuntimeError('Found no NVIDIA driver on your system')", "--set device=cpu"),
        ("open('tokens/train.bin')", "make that file first"),
    ],
    ids=["arguments", "a question", "a package", "a GPU", "a file"],
)  # fmt: skip
def test_a_program_that_fails_says_what_to_give(program, before_step, advice):
    with pytest.raises(SubjectError) as caught:
        program(f"{before_step}\n{script()}").record("plain")
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    "fails",
    [
        "raise ValueError('index 7 of the catalog in train.py is out of range')",
        "print('using cuda'); raise ValueError('no data')",
        "print('wandb: run wandb login to sync'); raise ValueError('no data')",
    ],
    ids=["a word in a word", "what it printed", "what a library printed"],
)
def test_no_advice_is_given_that_the_error_does_not_ask_for(program, fails):
    with pytest.raises(SubjectError) as caught:
        program(f"{fails}\n{script()}").record("plain")
    assert "; it wants" not in str(caught.value)


def test_a_program_over_its_memory_is_killed(program):
    made = program(script(before_step="import time; full = bytearray(10**9); time.sleep(60)"), limits=Limits(30.0, 0.9))
    with pytest.raises(SubjectError, match=r"exceeded 0.9 GiB of memory"):
        made.record("plain")


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what a process writes")
def test_a_program_that_writes_without_end_is_killed_before_the_disk_is_full(program, monkeypatch):
    monkeypatch.setattr(child_processes, "MOST_WRITTEN_GIB", 0.05)
    endless = "with open('big.bin', 'wb') as file:\n    while True:\n        file.write(bytes(1 << 20))\n"
    with pytest.raises(SubjectError, match=r"wrote more than 0.05 GiB to files"):
        program(endless, limits=Limits(60.0, 8.0)).record("plain")


def test_a_program_that_catches_everything_and_trains_on_is_stopped_all_the_same(program):
    text = script(replaced=[("steps = 3", "budget = 30")]).replace(
        "for step in range(steps):", "import itertools\nfor step in itertools.count():"
    )
    caught = text.replace("    optimizer.step()", "    try: optimizer.step()\n    except BaseException: pass")
    with pytest.raises(SubjectError, match="did not end within 1 s"):
        program(caught, limits=Limits(1.0, 8.0)).record("plain")
    recording = program(text).record("plain")
    assert (recording.ended, len(recording.steps)) == ("stopped", REHEARSALS["plain"].values["steps"])


def test_a_program_finds_python_as_a_new_process_does(program):
    """Random generators that a fork copies would make every unseeded run the same; flags of compile would leak."""
    text = script(after_step="print(np.random.rand(), random.random(), torch.initial_seed())\nprint(f.__annotations__)")
    text = (
        "import os\nimport random\nimport sys\ndef f(x: int): ...\n"
        "print(__name__, sys.argv, sys.path[0] == os.getcwd())\n" + text
    )
    made = program(text)
    one, other = made.record("plain").printed, made.record("again").printed
    assert one[0].text == "__main__ ['train.py'] True" == other[0].text
    assert not set(one[1].text.split()[:2]) & set(other[1].text.split()[:2])
    assert one[1].text.split()[2] == other[1].text.split()[2] == "1337"
    assert one[2].text == "{'x': <class 'int'>}"


def test_the_server_has_one_thread_so_that_a_fork_of_it_is_safe(tmp_path):
    processes = shared_processes()
    processes.run([Request(task="options", folder=str(tmp_path), program="none.py")], Limits(10.0))
    assert processes._server is not None
    assert len(os.listdir(f"/proc/{processes._server.pid}/task")) == 1


def test_what_a_program_has_started_ends_with_it(program):
    path = Path.cwd() / "pid"
    start = f"import subprocess, pathlib; pathlib.Path('{path}').write_text(str(subprocess.Popen(['sleep', '60']).pid))"
    program(script(before_step=f"if step == 0: {start}")).record("plain")
    process = Path("/proc", Path("pid").read_text())
    deadline = time.monotonic() + 5
    while process.exists() and "Z" not in (process / "stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "still running"
        time.sleep(0.02)


WRITES = """
import pathlib
notes = pathlib.Path("notes.txt")
print(notes.read_text(), pathlib.Path("left.pt").exists())
notes.write_text("overwritten")
pathlib.Path("left.pt").touch()
"""


def test_a_program_writes_into_a_copy_of_its_project_that_is_new_in_each_rehearsal(program):
    """A program that resumes by itself from a snapshot in its folder began a rehearsal where the last one ended."""
    Path("notes.txt").write_text("mine")
    made = program(WRITES + script())
    assert [made.record(name).printed[0].text for name in ("plain", "again")] == ["mine False"] * 2
    assert Path("notes.txt").read_text() == "mine"
    assert not Path("left.pt").exists()
