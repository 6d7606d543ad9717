"""The identity of a run: a checkpoint of another one is refused, with what differs."""

import pytest

from gpt.data import vocabulary
from gpt.errors import CheckpointError, CheckpointMismatch, ConfigError
from gpt.training.config import TrainConfig
from gpt.training.identity import check_identity, identity


def identity_of(config, text="abc", ranks=1, words="characters"):
    return identity(config, text=text, vocabulary=vocabulary(words, text), ranks=ranks)


def test_a_checkpoint_of_another_run_is_an_error_that_says_what_differs(tmp_path):
    ours = identity_of(TrainConfig())
    check_identity(tmp_path, ours, ours)
    check_identity(tmp_path, identity_of(TrainConfig(steps=5, keep=1, workers=2)), ours)
    for other, message in (
        (
            identity_of(TrainConfig(lr=1e-3, n_layer=3)),
            "n_layer is 3 there and 12 here; lr is 0.001 there and 0.0006 here",
        ),
        (identity_of(TrainConfig(), text="abd"), "the text has changed since; the vocabulary has changed since"),
        (identity_of(TrainConfig(), text="abcc"), r"another run: the text has changed since\. Resume"),
        (identity_of(TrainConfig(), ranks=2), "it has 2 ranks, and this run 1"),
    ):
        with pytest.raises(CheckpointMismatch, match=message) as caught:
            check_identity(tmp_path, other, ours)
        assert isinstance(caught.value, ConfigError)
        assert isinstance(caught.value, CheckpointError)
    with pytest.raises(CheckpointMismatch, match="its configuration is not one of this program"):
        check_identity(tmp_path, ours | {"config": {"layers": 3}}, ours)
