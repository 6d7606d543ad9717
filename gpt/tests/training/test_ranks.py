"""Ranks: two processes train as one does on the same global batches, and stay bitwise equal."""

import math
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from gpt.errors import ConfigError
from gpt.tests.training import two_ranks
from gpt.tests.training.small_trainer import in_float64, same
from gpt.training import ranks as ranks_module
from gpt.training.ranks import Ranks, choose_device, join


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What the two ranks found, in order."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(two_ranks.run, (port, str(folder)), nprocs=2)
    return [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(2)]


def test_torchruns_environment_gives_each_process_its_place(found):
    assert [one["place"] for one in found] == [[0, 2], [1, 2]]


def test_two_ranks_are_one_process_on_the_global_batch(found):
    """In float64, seven steps agree to 1e-9: a sum for a mean, a mean of means, local clipping or the same data on both
    ranks would differ in the first digits. An epoch ends inside, with a micro-batch that only rank 0 has windows of.
    """
    expected = two_ranks.numbers(in_float64(two_ranks.made(None)))
    assert len(set(expected["targets"])) > 1  # the ragged end is there
    for one in found:
        assert one["float64"]["targets"] == expected["targets"]
        assert one["float64"]["tokens"] == expected["tokens"] == sum(expected["targets"])
        for name in ("losses", "norms", "validation"):
            assert one["float64"][name] == pytest.approx(expected[name], rel=1e-9)
        for name, weight in expected["weights"].items():
            torch.testing.assert_close(one["float64"]["weights"][name], weight, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("run", ["float32", "float64", "dropout"])
def test_all_ranks_are_bitwise_equal_after_every_step(found, run):
    first, second = (one[run] for one in found)
    for name in ("losses", "norms", "targets", "validation"):
        assert first[name] == second[name]
    assert same(first["weights"], second["weights"])


def test_each_rank_has_its_own_dropout(found):
    first, second = (one["dropout"]["mask"] for one in found)
    assert not torch.equal(first, second)


def test_a_run_on_two_ranks_resumes_bitwise(found):
    """Each rank has a random state of its own, and the state has all of them."""
    for one in found:
        assert same(one["resumed"]["straight"], one["resumed"]["resumed"])
    assert found[0]["resumed"]["random"] == found[1]["resumed"]["random"]
    assert len(set(found[0]["resumed"]["random"])) == 2


def test_a_nan_on_one_rank_stops_both_with_the_same_message(found):
    """If one rank went on alone, it would wait for the other for ever."""
    messages = [one["nonfinite"] for one in found]
    assert messages[0] == messages[1]
    assert "transformer.h.1.ln_2" in messages[0]
    assert "of rank 1" in messages[0]


def test_texts_of_different_lengths_are_gathered_in_order(found):
    assert [one["texts"] for one in found] == [["", "zwei: ß"]] * 2


def test_a_flag_of_one_rank_is_seen_by_all(found):
    assert [one["any"] for one in found] == [[True, False]] * 2


def test_gradients_are_summed_in_their_types_and_a_missing_one_is_zeros(found):
    """1 + 2**-8 is a tie in bfloat16, rounded to 1; in float64 it is exact; rank 1 has no second gradient."""
    for one in found:
        assert one["summed"] == [[1.0, 1.0], [1.0, 1.0], [1.00390625, 1.00390625]]


# ---------------------------------------------------------------------------- without other ranks


def test_one_process_is_a_run_of_one_rank(monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    with join("cpu") as ranks:
        assert (ranks.rank, ranks.size, ranks.device.type) == (0, 1, "cpu")
        assert ranks.sum(torch.tensor(3.0)) == 3.0
        assert ranks.gather("text") == ["text"]
        assert ranks.any(True)
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun --nproc-per-node 1
    with join("cpu") as ranks:
        assert ranks.size == 1


def test_a_size_without_the_rest_of_torchruns_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match=r"RANK.*torchrun"), join("cpu"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE='two' is not a number"), join("cpu"):
        pass


def test_a_device_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match=r"device='cuda'.*there are 0.*device='cpu'"):
        choose_device("cuda")
    with pytest.raises(ConfigError, match="unknown"):
        choose_device("abacus")


def test_each_local_rank_has_its_own_cuda_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device("auto", rank).index for rank in range(2)] == [0, 1]
    assert choose_device("cuda:1", 0).index == 1
    with pytest.raises(ConfigError, match="needs CUDA device 2"):
        choose_device("auto", 2)


def test_gradients_travel_in_buckets_of_a_limited_size(monkeypatch):
    monkeypatch.setattr(ranks_module, "BUCKET_ELEMENTS", 10)
    gradients = [torch.zeros(size) for size in (4, 6, 1, 25, 3)] + [torch.zeros(3).double()]
    buckets = list(ranks_module._buckets(gradients))
    assert [[part.numel() for part in bucket] for bucket in buckets] == [[4, 6], [1], [25], [3], [3]]
    flat = [part for bucket in buckets for part in bucket]
    assert all(part is gradient for part, gradient in zip(flat, gradients, strict=True))


def test_many_ranks_in_bfloat16_are_rounded_once(monkeypatch):
    """1 + 2**-8 is 1 in bfloat16, so that two further ranks with 2**-8 each would vanish one after the other."""

    def two_further_ranks(tensor: torch.Tensor) -> None:
        tensor += 2**-8
        tensor += 2**-8

    monkeypatch.setattr(torch.distributed, "all_reduce", two_further_ranks)
    parameter = torch.ones(1, dtype=torch.bfloat16)
    parameter.grad = torch.ones(1, dtype=torch.bfloat16)
    Ranks(0, 3).sum_gradients([parameter])
    assert parameter.grad.tolist() == [1 + 2**-7]
    assert parameter.grad.dtype == torch.bfloat16


def test_a_single_rank_sums_nothing():
    parameter = torch.zeros(2)
    Ranks().sum_gradients([parameter])
    assert parameter.grad is None
    assert math.isclose(float(Ranks().sum(torch.ones(()))), 1.0)
