"""A loss that a program writes itself is seen: its targets, its value, and what it leaves out."""

import pytest
import torch

from harness.tests.training.tiny import HEAD, record, script

TORCHS = "    return F.cross_entropy(model(x).view(-1, 11), y.reshape(-1))\n"
WRITTEN_OUT = {
    "gather": "    return -F.log_softmax(model(x), -1).gather(-1, y.unsqueeze(-1)).mean()\n",
    "log-sum-exp": "    z = model(x)\n    return (z.logsumexp(-1) - z.gather(2, y[..., None])[..., 0]).mean()\n",
    "indexing": "    z = model(x).view(-1, 11).log_softmax(1)\n    return -z[torch.arange(8), y.view(-1)].mean()\n",
    "one-hot": "    z = F.log_softmax(model(x), -1)\n    return -(F.one_hot(y, 11) * z).sum(-1).mean()\n",
}


def losses(folder, loss, **request):
    folder.mkdir()
    recording = record(folder, script(head=HEAD.replace(TORCHS, loss)), **request)
    assert recording.ended == "finished", recording.message
    return [each for each in recording.forwards() if each.used]


@pytest.mark.parametrize("way", WRITTEN_OUT)
def test_a_loss_that_is_written_out_is_that_of_torch(tmp_path, way):
    expected, found = losses(tmp_path / "torch", TORCHS), losses(tmp_path / "own", WRITTEN_OUT[way])
    assert len(found) == 3
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.targets.reshape(-1), other.targets.reshape(-1))
        assert other.loss == pytest.approx(one.loss, rel=1e-5)


def test_targets_that_a_written_loss_leaves_out_are_not_counted(tmp_path):
    masked = (
        "    z, kept = F.log_softmax(model(x), -1), y != 3\n"
        "    return -(z.gather(-1, y.unsqueeze(-1)).squeeze(-1) * kept).sum() / kept.sum()\n"
    )
    ignored = "    return F.cross_entropy(model(x).view(-1, 11), y.reshape(-1), ignore_index=3)\n"
    expected, found = losses(tmp_path / "torch", ignored), losses(tmp_path / "own", masked)
    assert any(bool((each.targets == -100).any()) for each in expected)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.targets.reshape(-1), other.targets.reshape(-1))
        assert other.loss == pytest.approx(one.loss, rel=1e-5)


def test_a_smoothed_loss_has_its_cross_entropy_beside_it(tmp_path):
    smoothed = TORCHS.replace("y.reshape(-1))", "y.reshape(-1), label_smoothing=0.1)")
    for one, other in zip(losses(tmp_path / "torch", TORCHS), losses(tmp_path / "own", smoothed), strict=True):
        if one.step == 0:  # the steps that follow are others
            assert other.unsmoothed == pytest.approx(one.loss, rel=1e-6) != other.loss


def test_picking_scores_of_something_else_is_no_loss(tmp_path):
    drawn = TORCHS.replace("    return", "    model(x).gather(-1, torch.zeros(2, 4, 2, dtype=torch.long))\n    return")
    assert len(losses(tmp_path / "own", drawn)) == 3


@pytest.mark.parametrize(
    "aside",
    [
        "model(x)[..., :3].softmax(-1).gather(-1, (y % 3).unsqueeze(-1))",  # the choice of one of three experts
        "torch.take_along_dim(model(x), indices=torch.zeros(2, 4, 1, dtype=torch.long), dim=-1)",
        "torch.take_along_dim(model(x), indices=torch.zeros(1, dtype=torch.long))",
        "model(x)[torch.arange(2)[:, None], torch.arange(4)[None], y - 11]",  # counted from the end
    ],
)
def test_what_else_a_program_picks_leaves_the_loss_that_torch_computes(tmp_path, aside):
    own = TORCHS.replace("model(x)", "z").replace(
        "    return", f"    z = model(x)\n    {aside.replace('model(x)', 'z')}\n    return"
    )
    for one, other in zip(losses(tmp_path / "torch", TORCHS), losses(tmp_path / "own", own), strict=True):
        assert torch.equal(one.targets.reshape(-1), other.targets.reshape(-1))
        assert (other.loss, other.used) == (one.loss, True)


def test_the_choice_of_an_expert_before_a_written_loss_is_not_the_loss(tmp_path):
    own = (
        "    z = model(x)\n    z[..., :3].softmax(-1).gather(-1, (y % 3)[..., None])\n"
        "    return -F.log_softmax(z, -1).gather(-1, y.unsqueeze(-1)).mean()\n"
    )
    for one, other in zip(losses(tmp_path / "torch", TORCHS), losses(tmp_path / "own", own), strict=True):
        assert torch.equal(one.targets.reshape(-1), other.targets.reshape(-1))
