"""A model that loads a saved state is the freshly built model; loaders that make another one fail."""

import pytest

from harness.faults.catalogue import SPECIMEN, read_catalogue
from harness.judging.run_check import run
from harness.subjects.adapters import adapt

CHECK = "loading::saved-state-makes-the-same-model"
FAULTS = {fault.id: fault for fault in read_catalogue().faults}
KILLED = [
    ("load-keeps-the-dtype-of-the-file", "a state dict of float16"),
    ("load-keeps-the-tensors-that-it-was-given", "the model, after the loaded tensors were changed"),
    ("state-dict-hook-without-prefix", "the state dict of a module that contains the model"),
]


@pytest.mark.parametrize(("fault", "place"), KILLED)
def test_a_loader_that_makes_another_model_fails_in_its_place(shipped, tmp_path, fault, place):
    file = tmp_path / "my_gpt.py"
    file.write_text(FAULTS[fault].source_text(), encoding="utf-8")
    record = run(shipped[CHECK], adapt(f"{file}:GPT"))
    assert record.verdict == "fail", record.message
    assert record.where[0] == place


def test_a_loader_that_refuses_16_bits_is_not_judged_there(shipped, tmp_path):
    refusal = """    def load_state_dict(self, state_dict, strict=True, assign=False):
        if any(tensor.dtype == torch.float16 for tensor in state_dict.values()):
            raise TypeError("float32 only")
        return super().load_state_dict(state_dict, strict, assign)

    def initialise(self):
"""
    file = tmp_path / "my_gpt.py"
    file.write_text(SPECIMEN.read_text(encoding="utf-8").replace("    def initialise(self):\n", refusal))
    record = run(shipped[CHECK], adapt(f"{file}:GPT"))
    assert record.verdict == "pass", record.message
    assert "float32 only" in record.details["not judged"]["a state dict of float16"]
