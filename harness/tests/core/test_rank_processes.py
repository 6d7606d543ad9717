"""Questions to several ranks: answered in order, and a rank that fails, hangs or ends costs one question."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from harness.core.errors import SubjectError
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
    found = answers_of_ranks({"joins": joins_itself, "after": summed}, ranks=2, folder=tmp_path)
    assert set(found.given) == {"joins", "after"}


def test_ranks_that_stay_do_what_they_are_asked_until_they_are_closed():
    def make(place):
        count = [0]

        def more():
            count[0] += 1
            return {"count": count[0], "rank": place.rank}

        return {"more": more, "nothing": lambda: None, "fail": lambda: raises(place)}

    server = RankServer(make, ranks=2)
    server.ask("more")
    assert server.ask("nothing") == []
    assert server.ask("more") == [{"count": 2, "rank": 0}, {"count": 2, "rank": 1}]
    with pytest.raises(SubjectError, match="rank 1 is tired"):
        server.ask("fail")
    folder = server.folder
    server.close()
    assert not folder.exists()
