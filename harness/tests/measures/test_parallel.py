"""What ranks have and send, on answers that are made up and on two ranks that do one collective."""

import math
import os
import sys
import time

import pytest
import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_to_all_single

from harness.core.errors import MissingAbility, MissingResource
from harness.core.rank_processes import Answers, Failure, answers_of_ranks
from harness.measures.parallel import session as parallel_session
from harness.measures.parallel.agreement import ranks_apart, ties_after_wrapping
from harness.measures.parallel.costs import bytes_sent
from harness.measures.parallel.experiments import DTYPES
from harness.measures.parallel.global_batch import ACCUMULATED, IGNORED, PLAIN, global_batches
from harness.measures.parallel.parity import ranks_against_one_process
from harness.measures.parallel.session import Session, session
from harness.subjects.adapters import adapt
from harness.subjects.ranks.traffic import counted


def sends(place):
    whole = torch.zeros(100_000, dtype=torch.float64)
    with counted(place.ranks) as found:
        dist.all_reduce(whole)
        dist.all_gather_into_tensor(whole, whole.chunk(place.ranks)[place.rank].clone())
    return found


def test_collectives_are_counted_by_what_a_ring_sends_and_by_the_kernel(tmp_path):
    for found in answers_of_ranks({"sends": sends}, ranks=2, folder=tmp_path).given["sends"]:
        assert found["payload"] == {"allreduce": 800_000, "allgather": 800_000}
        assert found["ring"] == 800_000 + 400_000
        if sys.platform == "linux":
            assert 1_200_000 <= found["wire"] < 1_300_000  # a twelfth more at most: headers, and how they connect


def sends_without_a_ring(place):
    whole = torch.zeros(1000)
    with counted(place.ranks) as found:
        dist.reduce(whole, 0)
        dist.gather(whole, [torch.zeros(1000) for _ in range(2)] if place.rank == 0 else None, 0)
        dist.scatter(whole, [torch.zeros(1000) for _ in range(2)] if place.rank == 0 else None, 0)
        dist.send(whole, 1) if place.rank == 0 else dist.recv(whole, 0)
        other_way = dist.P2POp(dist.irecv if place.rank == 0 else dist.isend, whole, 1 - place.rank)
        dist.batch_isend_irecv([other_way])[0].wait()
        all_to_all_single(whole, None, None, dist.group.WORLD).wait()
    return found


def test_what_no_ring_does_is_named_and_not_counted(tmp_path):
    first, second = answers_of_ranks({"sends": sends_without_a_ring}, ranks=2, folder=tmp_path).given["sends"]
    assert first["others"] == {"reduce": 1, "gather": 1, "scatter": 1, "send": 1, "recv": 1}
    assert second["others"] == first["others"]
    assert first["payload"] == {"alltoall": 4000}


@pytest.fixture
def ranks():
    """A session of two ranks with one parameter of 4 elements: each has half, and both have the last one, number 5."""
    session.__globals__["_session"].cache_clear()
    made = session(adapt("gpt:GPT"), "data", "debug")
    made.__dict__["shapes"] = {"w": (2, 2), "b": (1,)}
    made.__dict__["layout"] = [[torch.tensor([1, 2]), torch.tensor([5])], [torch.tensor([3, 4]), torch.tensor([5])]]
    yield made
    session.__globals__["_session"].cache_clear()


def test_parts_are_put_together_by_their_numbers_and_each_rank_sees_its_own(ranks: Session):
    parts = [[torch.tensor([1.0, 2.0]), torch.tensor([7.0])], [torch.tensor([3.0, 4.0]), torch.tensor([8.0])]]
    first, second = ranks.whole(parts)
    assert first["w"].tolist() == second["w"].tolist() == [[1, 2], [3, 4]]
    assert (first["b"].item(), second["b"].item()) == (7, 8)
    assert ranks.apart(parts) == 1


def test_what_no_rank_has_is_not_a_number(ranks: Session):
    ranks.__dict__["layout"] = [[torch.tensor([1, 2])], [torch.tensor([3])]]
    views = ranks.whole([[torch.tensor([1.0, 2.0])], [torch.tensor([3.0])]])
    assert torch.isnan(views[0]["w"][1, 1])
    ranks.__dict__["_answers"] = Answers({"layout": [{}, {}]})
    found = ties_after_wrapping(ranks.subject, size="debug", kind="data").value
    assert found["elements on no rank"] == 2


def test_an_element_that_a_rank_has_twice_is_a_broken_tie(ranks: Session):
    ranks.__dict__["layout"] = [[torch.tensor([1, 2, 3, 4, 5]), torch.tensor([1, 2])]] * 2
    reading = ties_after_wrapping(ranks.subject, size="debug", kind="data")
    assert reading.value["elements with two copies on a rank"] == 2
    assert reading.details["hint"].startswith("the tie")


def test_ranks_that_fail_are_a_reading_with_their_line(ranks: Session):
    failure = Failure("rank 1: ValueError: no", ("/home/me/mine.py", 7), "printed")
    ranks.__dict__["_answers"] = Answers(failed={"accumulated": failure})
    reading = ranks_apart(ranks.subject, size="debug", kind="data")
    assert reading.value == {"the ranks": "rank 1: ValueError: no"}
    assert reading.details["line"] == ["/home/me/mine.py", 7]


@pytest.mark.parametrize("way", ["ring", "wire"])
def test_bytes_are_skipped_where_no_ring_sends(ranks: Session, way):
    """Regression: a parameter server's sends were not counted, so that a right program sent nothing, and failed.

    On the wire its rank 0 sends 1.5 times the closed form through gloo.
    """
    traffic = {"payload": {}, "calls": {}, "others": {"reduce": 3}, "ring": 0.0, "wire": 60}
    answers = [{"float64": {"steps": [{"traffic": traffic}]}}] * 2
    ranks.__dict__["_answers"] = Answers({ACCUMULATED: answers})
    with pytest.raises(MissingAbility, match="sends by reduce, which is no ring"):
        bytes_sent(ranks.subject, size="debug", kind="data", counted=way)


def test_a_program_that_needs_a_gpu_is_skipped(ranks: Session):
    failure = Failure("every rank: RuntimeError: FSDP needs a non-CPU accelerator device")
    ranks.__dict__["_answers"] = Answers(failed={"accumulated": failure})
    with pytest.raises(MissingResource, match="the program needs a GPU"):
        ranks_apart(ranks.subject, size="debug", kind="data")


def returned(compare, first, second):
    """Return answers of two ranks that returned these losses or norms at the one step of their training."""
    gradients = [torch.ones(2), torch.ones(1)]
    steps = [[{compare: value, "gradients": gradients}] for value in (first, second)]
    return [{dtype: {"steps": each} for dtype in DTYPES} for each in steps]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((2.0, 2.0), "equal"),
        ((math.nan, math.nan), "different"),
        ((2.0, math.nan), "different"),
        ((-2.0, -2.0), "different"),
    ],
)
@pytest.mark.parametrize("compare", ["loss", "norm"])
def test_a_loss_or_a_norm_that_is_not_a_number_or_negative_is_wrong(ranks: Session, compare, values, verdict):
    """Regression: -1 meant "returned nothing", and a NaN is not 0 or more: both were skipped, and passed."""
    ranks.__dict__["_answers"] = Answers({ACCUMULATED: returned(compare, *values)})
    one = {"losses": [2.0], "norms": [2.0], "gradients": [torch.ones(2, 2), torch.ones(1)]}
    ranks._one.update({(ACCUMULATED, dtype): one for dtype in DTYPES})
    reading = ranks_against_one_process(ranks.subject, size="debug", kind="data", compare=compare, case=ACCUMULATED)
    assert reading.value == {"step 0": verdict}


@pytest.mark.parametrize("compare", ["loss", "norm"])
def test_a_function_that_returns_no_loss_or_norm_is_skipped(ranks: Session, compare):
    ranks.__dict__["_answers"] = Answers({ACCUMULATED: returned(compare, None, None)})
    ranks._one.update({(ACCUMULATED, dtype): {"losses": [2.0], "norms": [2.0]} for dtype in DTYPES})
    with pytest.raises(MissingAbility, match=f"returns no {compare}"):
        ranks_against_one_process(ranks.subject, size="debug", kind="data", compare=compare, case=ACCUMULATED)


def test_a_loss_that_rank_0_alone_returns_is_compared(ranks: Session):
    ranks.__dict__["_answers"] = Answers({ACCUMULATED: returned("loss", 3.0, None)})
    ranks._one.update({(ACCUMULATED, dtype): {"losses": [2.0]} for dtype in DTYPES})
    reading = ranks_against_one_process(ranks.subject, size="debug", kind="data", compare="loss", case=ACCUMULATED)
    assert reading.value == {"step 0": "different"}


def test_a_question_that_was_not_asked_names_the_function_that_is_missing(tmp_path):
    (tmp_path / "mine.py").write_text("from harness.faults.specimen import GPT\ndef to_ddp(model): ...\n")
    own = Session(adapt(f"{tmp_path / 'mine.py'}:GPT"), "data", "debug")
    own.__dict__["_answers"] = Answers()
    with pytest.raises(MissingAbility, match="save_checkpoint, save_sharded"):
        own.answers("save")


def test_two_processes_ask_the_ranks_once(ranks: Session, tmp_path, monkeypatch):
    """The second waits while the first asks, and then reads its answers."""

    answers = Answers({"sum": [{"sum": 3}, {"sum": 3}]}, {"hang": Failure("it hangs", ("/home/me/mine.py", 7), "text")})

    def ask_slowly(questions, *, ranks, folder):
        with open(tmp_path / "asked", "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(1.0)
        return Answers(
            {"sum": [{"sum": 3}, {"sum": 3}]}, {"hang": Failure("it hangs", ("/home/me/mine.py", 7), "text")}
        )

    monkeypatch.setattr(parallel_session, "answers_of_ranks", ask_slowly)
    other = os.fork()
    if other == 0:
        try:
            ranks._asked_once("session", 2, {})
        finally:
            os._exit(0)
    while not (tmp_path / "asked").exists():
        time.sleep(0.01)
    found = ranks._asked_once("session", 2, {})
    os.waitpid(other, 0)
    assert (tmp_path / "asked").read_text() == f"{other}\n"
    assert found == answers


def test_accumulated_batches_have_other_numbers_of_targets_on_each_rank_and_in_each_step():
    counts = [
        [int((half != IGNORED).sum()) for _, targets in step for half in targets.chunk(2)]
        for step in global_batches("debug", ACCUMULATED)
    ]
    assert all(len(set(step)) > 2 for step in counts)
    assert len({sum(step) for step in counts}) == len(counts)
    ((_, targets),) = global_batches("debug", PLAIN)[0]
    assert (targets != IGNORED).all()
