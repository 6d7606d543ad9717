"""The streams of tokens that a training program reads or makes, as the recorder sees them."""

import importlib
import sys

import numpy as np
import pytest

from harness.tests.training.tiny import record, script
from harness.training.child.seams.patches import Patches


def test_token_streams_are_recorded_once_and_batches_are_not(tmp_path):
    np.arange(300, dtype=np.uint16).tofile(tmp_path / "tokens.bin")
    maps = (
        "ids = np.memmap('tokens.bin', dtype=np.uint16, mode='r')\nwhole = torch.from_numpy(ids.astype(np.int64))\n"
        "torch.from_numpy(ids[:20].astype(np.int64))"
    )
    listed = ("data = torch.randint(11, (500,))", "data = torch.tensor([n % 11 for n in range(500)])")
    recording = record(tmp_path, script(before_step=maps, replaced=[listed]))
    made, mapped = recording.streams
    assert (made.name, made.dtype, made.ids[:12].tolist()) == ("torch.tensor", "int64", [*range(11), 0])
    assert (mapped.name, mapped.dtype, mapped.ids.tolist()) == ("tokens.bin", "uint16", list(range(300)))
    assert mapped.complete


HUGGING_FACE = """\
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
words = Tokenizer(models.WordLevel({str(n): n for n in range(10)}))
words.pre_tokenizer = pre_tokenizers.Whitespace()
ids = PreTrainedTokenizerFast(tokenizer_object=words)@(" ".join(str(n % 10) for n in range(300)))
"""


@pytest.mark.parametrize("method", [".encode", ""])
def test_the_ids_that_a_tokenizer_of_hugging_face_makes_are_a_stream(tmp_path, method):
    """They stay a list, which is cut into windows: no array of them was seen, and no row was found."""
    pytest.importorskip("transformers")
    recording = record(tmp_path, HUGGING_FACE.replace("@", method) + script())
    made = next(stream for stream in recording.streams if stream.name.startswith("transformers."))
    assert made.ids.tolist() == [n % 10 for n in range(300)]


LISTED = """\
from torch.utils.data import DataLoader, Dataset, random_split
class Windows(Dataset):
    def __init__(self):
        self.lengths = [4] * 200
        self.tokens = [n % 10 for n in range(300)]
    def __len__(self):
        return 296
    def __getitem__(self, n):
        return torch.tensor(self.tokens[n : n + 4])
@
DataLoader(random_split(Windows(), [200, 96])[0])
"""


@pytest.mark.parametrize(
    ("before", "names"),
    [("", ["Windows.tokens"]), ("torch.tensor(list(range(300)))", ["torch.tensor"])],
)
def test_a_list_of_ids_in_a_dataset_is_a_stream_if_no_other_was_seen(tmp_path, before, names):
    """Ids of the program's own tokenizer that stay a list: of no row was known where it begins, nor in which part."""
    listed = ("data = torch.randint(11, (500,))", "data = torch.randint(11, (50,))")
    starts = ("torch.randint(490, (2,))", "torch.randint(40, (2,))")
    text = script(replaced=[listed, starts])
    head, model = text.split("torch.manual_seed(0)")
    recording = record(tmp_path, head + LISTED.replace("@", before) + model)
    assert [stream.name for stream in recording.streams] == names


def test_a_module_that_is_watched_for_is_found_as_without_and_no_more_after_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    for name in ("watched", "never"):
        (tmp_path / f"{name}_by_this_test.py").write_text("value = 1")
    patches = Patches()
    for name in ("watched", "never"):
        patches.when_imported(
            f"{name}_by_this_test", lambda module: patches.replace(module, "value", lambda own: own + 1)
        )
    assert importlib.import_module("watched_by_this_test").value == 2
    patches.restore()
    assert importlib.import_module("watched_by_this_test").value == 1
    assert importlib.import_module("never_by_this_test").value == 1
    assert sys.meta_path == finders


def test_a_stream_that_is_too_long_is_recorded_in_part_and_says_so(tmp_path):
    np.zeros(4_000_001, dtype=np.uint8).tofile(tmp_path / "tokens.bin")
    maps = "np.memmap('tokens.bin', dtype=np.uint8, mode='r')"
    (mapped,) = [each for each in record(tmp_path, script(before_step=maps)).streams if "tokens.bin" in each.name]
    assert (len(mapped.ids), mapped.length, mapped.complete) == (4_000_000, 4_000_001, False)


ARRAYS = (
    ("data = torch.randint(11, (500,))", "data = np.random.default_rng(0).integers(0, 11, 500).astype(np.uint16)"),
    ("torch.stack([data[s : s + 4] for s in starts])", "rows(starts)"),
    ("torch.stack([data[s + 1 : s + 5] for s in starts])", "rows([s + 1 for s in starts])"),
    (
        "def batch():",
        "order = list(range(300))\n\n\ndef rows(starts):\n"
        "    return torch.from_numpy(np.stack([data[s : s + 4] for s in starts]).astype(np.int64))\n\n\ndef batch():",
    ),
)


def test_an_array_in_the_programs_own_variables_is_a_stream_if_the_first_batch_is_from_it(tmp_path):
    (found,) = record(tmp_path, script(replaced=ARRAYS)).streams
    assert (found.name, found.dtype, len(found.ids)) == ("data", "uint16", 500)
    others = (*ARRAYS[:-1], (ARRAYS[-1][0], ARRAYS[-1][1].replace("int64))", "int64)) * 0 + 12 % 11")))
    assert not record(tmp_path, script(replaced=others)).streams, "rows of no array"
