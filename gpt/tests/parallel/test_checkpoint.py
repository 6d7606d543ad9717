"""A folder has one whole checkpoint, or reading it is an error."""

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from gpt import GPT, PRESETS
from gpt.errors import WeightsError
from gpt.parallel import data_parallel, full_state_dict, fully_sharded, load_checkpoint, save_checkpoint
from gpt.tests.parallel.forked_ranks import on_ranks


def sharded(mesh, seed=0, **changes):
    model = fully_sharded(GPT(replace(PRESETS["debug"], **changes), seed=seed), mesh)
    return model, torch.optim.AdamW(model.parameters(), foreach=False)


def saved(rank, mesh, folder, seed=0):
    """Save a model and the state of its optimizer; return its weights and the random number that follows."""
    model, optimizer = sharded(mesh, seed)
    torch.manual_seed(3)
    save_checkpoint(model, optimizer, folder)
    return {"weights": full_state_dict(model), "drawn": torch.rand(())}


def loaded(rank, mesh, folder, changes):
    """Return the weights that a rank reads, or the error."""
    model, optimizer = sharded(mesh, seed=9, **changes)
    try:
        load_checkpoint(model, optimizer, folder)
    except WeightsError as error:
        return {"error": str(error)}
    return {"error": "", "weights": full_state_dict(model)}


def error_of(folder, ranks=1, **changes):
    (error,) = {found["error"] for found in on_ranks(ranks, loaded, str(folder), changes)}
    return error


def weights_of(folder):
    (found,) = on_ranks(1, loaded, str(folder), {})
    assert found["error"] == ""
    return found["weights"]


def same(one, other):
    return all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_a_checkpoint_that_lacks_a_rank_is_an_error(tmp_path):
    on_ranks(2, saved, str(tmp_path))
    (tmp_path / "rank-1-of-2.safetensors").unlink()
    assert "has 1 files of ranks; expected 2" in error_of(tmp_path)
    assert "has 0 files of ranks" in error_of(tmp_path / "nothing")


def test_files_of_two_saves_are_an_error(tmp_path):
    """Regression: a process that is killed while it saves left new and old files, which were read as one model."""
    for seed in (0, 1):
        on_ranks(2, saved, str(tmp_path / str(seed)), seed)
    shutil.copy(tmp_path / "1" / "rank-1-of-2.safetensors", tmp_path / "0")
    assert "has files of two saves" in error_of(tmp_path / "0", ranks=2)
    on_ranks(1, saved, str(tmp_path / "0"), 0)
    shutil.copy(tmp_path / "1" / "rank-1-of-2.safetensors", tmp_path / "0")
    assert "has files of two saves" in error_of(tmp_path / "0")


def ends_while_saving(rank, mesh, folder):
    """Be killed on rank 1 once its file is written, before that of rank 0 is known to be."""
    if rank == 1:
        dist.barrier = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    saved(rank, mesh, folder, seed=1)


def test_a_rank_that_ends_while_it_saves_leaves_the_checkpoint_before(tmp_path):
    before = on_ranks(2, saved, str(tmp_path))[0]["weights"]
    with pytest.raises(FileNotFoundError):  # the ranks return nothing
        on_ranks(2, ends_while_saving, str(tmp_path))
    assert same(before, weights_of(tmp_path))
    after = on_ranks(2, saved, str(tmp_path), 1)[0]["weights"]
    assert same(after, weights_of(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_saving_on_another_number_of_ranks_replaces_all_files(tmp_path, before, after):
    """Regression: the files of the other number stayed, and the folder could not be read."""
    on_ranks(before, saved, str(tmp_path), 0)
    expected = on_ranks(after, saved, str(tmp_path), 1)[0]["weights"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"rank-{r}-of-{after}.safetensors" for r in range(after)
    ]
    assert same(expected, weights_of(tmp_path))


def with_a_frozen_parameter(rank, mesh, folder):
    """Save after a step in which one parameter had no gradient; return the names of those with moments, read back."""
    model, optimizer = sharded(mesh)
    model(torch.arange(8).view(2, 4), torch.arange(8).view(2, 4))[1].backward()
    model.transformer["ln_f"].weight.grad = None
    optimizer.step()
    save_checkpoint(model, optimizer, folder)
    other, new = sharded(mesh, seed=9)
    load_checkpoint(other, new, folder)
    return [name for name, parameter in other.named_parameters() if parameter not in new.state]


def test_a_parameter_without_moments_has_none_after_loading(tmp_path):
    """Regression: a checkpoint from before the first step, or of a frozen parameter, could not be read."""
    assert on_ranks(2, with_a_frozen_parameter, str(tmp_path)) == [["transformer.ln_f.weight"]] * 2


def test_saving_draws_no_random_number(tmp_path):
    torch.manual_seed(3)
    assert on_ranks(1, saved, str(tmp_path))[0]["drawn"] == torch.rand(())


def test_a_tensor_that_no_file_has_is_an_error(tmp_path):
    on_ranks(2, saved, str(tmp_path))
    layers = PRESETS["debug"].n_layer + 1
    assert f"lacks model.transformer.h.{layers - 1}." in error_of(tmp_path, n_layer=layers)


def test_a_tensor_of_which_one_rank_has_no_part_is_an_error(tmp_path):
    on_ranks(2, saved, str(tmp_path))
    path = tmp_path / "rank-1-of-2.safetensors"
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    parts = json.loads(metadata["parts"])
    del parts["model.transformer.ln_f.weight"], tensors["model.transformer.ln_f.weight"]
    save_file(tensors, path, metadata={**metadata, "parts": json.dumps(parts)})
    assert "lacks model.transformer.ln_f.weight, or a part of it" in error_of(tmp_path, ranks=1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_tensor_of_another_shape_is_an_error(tmp_path, ranks):
    """A table with more rows would be filled in part, and the rest stay as it was."""
    on_ranks(2, saved, str(tmp_path))
    size = PRESETS["debug"].block_size
    for other in (size // 2, size * 2):
        assert f"is of shape ({size}, " in error_of(tmp_path, ranks=ranks, block_size=other)


def replica_error(rank, mesh, folder):
    model = data_parallel(GPT(replace(PRESETS["debug"], block_size=2 * PRESETS["debug"].block_size), seed=0))
    try:
        load_checkpoint(model, torch.optim.AdamW(model.parameters()), folder)
    except WeightsError as error:
        return {"error": str(error)}
    return {"error": ""}


def test_a_shape_is_compared_where_every_rank_has_all_of_it_too(tmp_path):
    on_ranks(2, saved, str(tmp_path))
    assert "expected (" in on_ranks(1, replica_error, str(tmp_path))[0]["error"]
