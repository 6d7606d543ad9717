"""Questions to several ranks: answered in order, and a rank that fails, hangs or ends costs one question."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed import destroy_process_group, init_process_group

from harness.core import rank_server
from harness.core.errors import SubjectError
from harness.core.forked import end_with_parent
from harness.core.rank_processes import answers_of_ranks
from harness.core.rank_server import RankServer


def summed(place):
    found = torch.tensor([float(place.rank + 1)])
    dist.all_reduce(found)
    return {"sum": found, "rank": place.rank, "environment": os.environ["RANK"] + " of " + os.environ["WORLD_SIZE"]}


def raises(place):
    if place.rank == 1:
        raise ValueError("rank 1 is tired")
    return summed(place)


def waits(place):
    """Only one rank takes part in the sum."""
    return summed(place) if place.rank == 0 else {"skipped": True}


def leaves(place):
    print("goodbye", flush=True)
    os._exit(3)


def joins_itself(place):
    dist.init_process_group("gloo")
    answer = summed(place)
    dist.destroy_process_group()
    return answer


def joins_by_imported_names(place):
    init_process_group("gloo")
    answer = summed(place)
    destroy_process_group()
    return answer


def test_each_rank_answers_in_its_place(tmp_path):
    found = answers_of_ranks({"sum": summed}, ranks=3, folder=tmp_path)
    assert found.failed == {}
    assert [answer["rank"] for answer in found.given["sum"]] == [0, 1, 2]
    assert [answer["environment"] for answer in found.given["sum"]] == ["0 of 3", "1 of 3", "2 of 3"]
    assert all(answer["sum"].item() == 6 for answer in found.given["sum"])


def test_a_rank_that_raises_costs_its_question_alone(tmp_path):
    found = answers_of_ranks({"before": summed, "raises": raises, "after": summed}, ranks=2, folder=tmp_path)
    assert set(found.given) == {"before", "after"}
    failure = found.failed["raises"]
    assert failure.what.startswith("rank 1: ValueError: rank 1 is tired")
    assert failure.line[0] == __file__


def test_ranks_that_wait_for_one_another_are_ended_and_their_line_is_said(tmp_path):
    began = time.monotonic()
    found = answers_of_ranks({"waits": waits, "after": summed}, ranks=2, folder=tmp_path, seconds=3.0)
    assert time.monotonic() - began < 30
    assert "no answer in time" in found.failed["waits"].what
    assert "rank 1 was done" in found.failed["waits"].what
    assert found.failed["waits"].line[0] == __file__
    assert "after" in found.given


def test_a_rank_that_ends_says_how_and_what_it_printed(tmp_path):
    failure = answers_of_ranks({"leaves": leaves}, ranks=2, folder=tmp_path).failed["leaves"]
    assert "exited with status 3" in failure.what
    assert failure.output == "goodbye\n"


def test_a_program_may_join_the_ranks_itself(tmp_path):
    """Also by names that it imported from torch before it became a rank, which was an error once."""
    questions = {"joins": joins_itself, "imported": joins_by_imported_names, "after": summed}
    assert set(answers_of_ranks(questions, ranks=2, folder=tmp_path).given) == set(questions)


def in_a_process(function, *arguments) -> int:
    """Call a function in a forked process that has a process group of its own, as a shell gives a command."""
    process = os.fork()
    if process == 0:
        try:
            os.setpgid(0, 0)
            end_with_parent()
            function(*arguments)
        finally:
            os._exit(0)
    return process


def wait_for(condition, seconds=20.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return bool(condition())


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def works_for_a_second(place):
    (place.folder / f"works.{place.rank}").write_text(str(os.getpid()))
    for _ in range(100):
        time.sleep(0.01)
    return {}


def asks(folder):
    found = answers_of_ranks({"works": works_for_a_second}, ranks=2, folder=folder, seconds=2.0)
    (folder / "found").write_text(str(sorted(found.given)))


def test_time_in_which_a_run_is_suspended_is_no_hang(tmp_path):
    """Regression: a run that was stopped by Ctrl-Z, and continued after the limit, failed with "no answer in time"."""
    process = in_a_process(asks, tmp_path)
    assert wait_for((tmp_path / "works.1").exists)
    os.killpg(process, signal.SIGSTOP)
    time.sleep(2.5)
    os.killpg(process, signal.SIGCONT)
    os.waitpid(process, 0)
    assert (tmp_path / "found").read_text() == "['works']"


def hangs(place):
    (place.folder / f"works.{place.rank}").write_text(str(os.getpid()))
    time.sleep(60)
    return {}


def serves(folder):
    def make(place):
        return {"hang": lambda: hangs(type(place)(place.rank, place.ranks, folder))}

    RankServer(make, ranks=2).ask("hang")


def asks_for_ever(folder):
    answers_of_ranks({"hangs": hangs}, ranks=2, folder=folder)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.parametrize("run", [asks_for_ever, serves])
def test_ranks_end_with_the_process_that_asks_them_however_it_ends(tmp_path, run):
    process = in_a_process(run, tmp_path)
    files = [tmp_path / f"works.{rank}" for rank in range(2)]
    assert wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    ranks = [int(file.read_text()) for file in files]
    assert all(map(is_running, ranks))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert wait_for(lambda: not any(map(is_running, ranks)), seconds=10.0)


@pytest.mark.parametrize("start", [asks_for_ever, serves])
def test_ranks_that_cannot_all_be_started_are_ended(tmp_path, monkeypatch, start):
    """Regression: if the second could not be forked, the first stayed."""
    fork, forked = os.fork, []

    def forks_once():
        if forked:
            raise BlockingIOError("Resource temporarily unavailable")
        forked.append(fork())
        return forked[0]

    monkeypatch.setattr(os, "fork", forks_once)
    descriptors = len(os.listdir("/dev/fd"))
    with pytest.raises(BlockingIOError) as raised:  # its traceback has the server: nothing else ends it
        start(tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(forked[0], 0)
    assert len(os.listdir("/dev/fd")) == descriptors
    assert raised.value.args == ("Resource temporarily unavailable",)


@pytest.mark.usefixtures("many_descriptors")
def test_ranks_that_stay_do_what_they_are_asked_until_they_are_closed():
    def make(place):
        count = [0]

        def more():
            count[0] += 1
            return {"count": count[0], "rank": place.rank}

        return {"more": more, "nothing": lambda: None, "fail": lambda: raises(place)}

    server = RankServer(make, ranks=2)
    folder = server.folder
    server.ask("more")
    assert server.ask("nothing") == []
    assert server.ask("more") == [{"count": 2, "rank": 0}, {"count": 2, "rank": 1}]
    with pytest.raises(SubjectError, match="rank 1 is tired"):
        server.ask("fail")
    assert not folder.exists()
    with pytest.raises(SubjectError, match="the ranks were ended"):
        server.ask("more")
    server.close()


def test_ranks_that_stay_are_ended_if_one_gives_no_answer_in_time(tmp_path):
    """Regression: they went on, and the next command got the answer to this one."""
    server = RankServer(lambda place: {"hang": lambda: hangs(place)}, ranks=2, seconds=1.0)
    with pytest.raises(SubjectError, match="rank 0, asked to hang: no answer in time"):
        server.ask("hang")
    assert not server.close.alive


def test_ranks_that_stay_see_that_the_process_that_asks_has_gone(monkeypatch):
    """Regression: each rank had a copy of the descriptors by which they are asked, so that none saw their end.

    On Linux the system ends them anyway, which is left out here.
    """
    monkeypatch.setattr(rank_server, "end_with_parent", lambda: None)
    server = RankServer(lambda place: {"pid": lambda: {"pid": os.getpid()}}, ranks=2)
    ranks = [answer["pid"] for answer in server.ask("pid")]
    for descriptor in server._asks:
        os.close(descriptor)
    server._asks.clear()
    assert wait_for(
        lambda: all(os.waitid(os.P_PID, rank, os.WEXITED | os.WNOHANG | os.WNOWAIT) for rank in ranks), 10.0
    )
    server.close()
