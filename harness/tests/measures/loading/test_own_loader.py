"""A program's own function that copies a checkpoint's tensors: right ones pass, what others do is named."""

from pathlib import Path

import pytest

from harness.diagnosis.searches import loading
from harness.judging.run_check import run
from harness.measures.loading.own_loader import loaded_tensors_differing
from harness.subjects.adapters import adapt
from harness.tests.subjects.styles import dataclass_config

CHECK = "loading::own-loader-copies-every-tensor"
MODEL = Path(dataclass_config.__file__).read_text(encoding="utf-8")
# As people write them, each for another form of the checkpoint.
BY_NAME = """

@torch.no_grad()
def load_gpt2(model, state_dict):
    own = model.state_dict()
    for name, tensor in state_dict.items():
        if name.endswith(".attn.bias"):
            continue
        key = name if name.startswith(("transformer.", "lm_head")) else "transformer." + name
        turned = key.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight"))
        own[key].copy_(tensor.t() if turned else tensor)
"""
LAYER_BY_LAYER = '''
    @torch.no_grad()
    def load_weights(self, sd):
        """Copy the released file's tensors."""
        own = self.transformer
        own["wte"].weight.copy_(sd["wte.weight"])
        own["wpe"].weight.copy_(sd["wpe.weight"])
        own["ln_f"].load_state_dict({"weight": sd["ln_f.weight"], "bias": sd["ln_f.bias"]})
        for i, layer in enumerate(own["h"]):
            for name, parameter in layer.named_parameters():
                tensor = sd[f"h.{i}.{name}"]
                parameter.copy_(tensor.t() if tensor.dim() == 2 else tensor)
'''
NESTED = """

def assign(left, right):
    assert left.shape == right.shape, (left.shape, right.shape)
    return nn.Parameter(torch.tensor(right))


def load_weights_into_gpt(gpt, params):
    gpt.transformer["wpe"].weight = assign(gpt.transformer["wpe"].weight, params["wpe"])
    gpt.lm_head.weight = assign(gpt.lm_head.weight, params["wte"])
    gpt.transformer["wte"].weight = gpt.lm_head.weight
    for layer, block in zip(gpt.transformer["h"], params["blocks"]):
        for part in ("attn", "mlp"):
            for name, given in block[part].items():
                linear = getattr(layer.attn, name) if part == "attn" else layer.mlp[name]
                linear.weight = assign(linear.weight, given["w"].T)
                linear.bias = assign(linear.bias, given["b"])
        for name in ("ln_1", "ln_2"):
            norm = getattr(layer, name)
            norm.weight, norm.bias = assign(norm.weight, block[name]["g"]), assign(norm.bias, block[name]["b"])
    last = gpt.transformer["ln_f"]
    last.weight, last.bias = assign(last.weight, params["g"]), assign(last.bias, params["b"])
"""
FROM_A_MODEL = """
    @classmethod
    def from_hf(cls, hf_model):
        c = hf_model.config
        model = cls(Shape(c.n_positions, c.vocab_size, c.n_layer, c.n_head, c.n_embd, 0.0, True))
        own, given = model.state_dict(), hf_model.state_dict()
        with torch.no_grad():
            for key in own:
                turned = "attn.c_" in key or ".mlp." in key
                own[key].copy_(given[key].t() if turned and given[key].dim() == 2 else given[key])
        return model
"""
RIGHT = {"by name": BY_NAME, "layer by layer": LAYER_BY_LAYER, "nested": NESTED, "from a model": FROM_A_MODEL}
# (the function, the text, what is there instead, the fault's id, words of the finding)
WRONG = [
    (BY_NAME, '"c_fc.weight", "c_proj.weight")', '"c_fc.weight", "mlp.c_proj.weight")',
     "load-conv1d-square-not-transposed", "attn.c_proj.weight is left transposed"),
    (BY_NAME, 'endswith(".attn.bias")', 'endswith((".attn.bias", "ln_f.weight", "ln_f.bias"))',
     "load-final-ln-left-at-init", "ln_f is not loaded"),
    (BY_NAME, 'endswith(".attn.bias")', 'endswith("bias")', "load-biases-dropped", "biases are not loaded"),
    (LAYER_BY_LAYER, 'tensor = sd[f"h.{i}.{name}"]',
     'tensor = [t for k, t in sd.items() if k.startswith(f"h.{i}") and k.endswith("." + name)][-1]',
     "load-layers-off-by-one", "h.1.ln_1.weight has the numbers of transformer.h.11.ln_1.weight"),
    (NESTED, "linear.weight = assign(linear.weight, given[\"w\"].T)", "w = given[\"w\"] if name != \"c_attn\" else "
     "given[\"w\"].reshape(-1, 3, given[\"w\"].shape[0])[:, [1, 0, 2]].reshape(given[\"w\"].shape)\n"
     "                linear.weight = assign(linear.weight, w.T)", "load-qkv-order", "its thirds in another order"),
    (NESTED, 'gpt.transformer["wte"].weight = gpt.lm_head.weight',
     'gpt.transformer["wte"].weight = assign(gpt.lm_head.weight.data, params["wte"])',
     "tie-broken-by-load-assign", "breaks the tie"),
    (FROM_A_MODEL, "return model", "return model.half()", "load-half-precision-roundtrip", "is rounded to 16 bits"),
]  # fmt: skip


@pytest.fixture
def subject(tmp_path):
    def made(function):
        (tmp_path / "mine.py").write_text(MODEL + function, encoding="utf-8")
        return adapt(f"{tmp_path / 'mine.py'}:GPT")

    return made


@pytest.mark.parametrize("function", RIGHT.values(), ids=RIGHT)
def test_a_right_function_of_any_form_passes(subject, shipped, function):
    record = run(shipped[CHECK], subject(function))
    assert record.verdict == "pass", record.message


@pytest.mark.parametrize(("function", "find", "put", "fault", "says"), WRONG, ids=[row[3] for row in WRONG])
def test_what_becomes_of_a_tensor_is_named_with_the_line_of_the_function(
    subject, shipped, function, find, put, fault, says
):
    assert function.count(find) == 1
    wrong = subject(function.replace(find, put))
    assert run(shipped[CHECK], wrong).verdict == "fail"
    (found,) = [each for each in loading.search(wrong) if each.fault == fault]
    assert says in f"{found.cause}; {found.evidence}"
    assert found.text.startswith("def ")


OTHERS = {
    "of its own files": "\n    def load_weights(self, state):\n        self.load_state_dict(state, strict=False)\n",
    "of its own names": "\n\ndef load_model(model, checkpoint):\n    model.load_state_dict(checkpoint['model'])\n",
}


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_a_function_that_is_there_for_something_else_is_a_skip(subject, shipped, function):
    renamed = function.replace("load_state_dict(state", "load_state_dict({f'own.{k}': v for k, v in state.items()}")
    record = run(shipped[CHECK], subject(renamed))
    assert record.verdict == "skip"
    assert "that loads tensors takes no" in record.message


def test_a_program_without_such_a_function_is_a_skip(subject, shipped):
    record = run(shipped[CHECK], subject(""))
    assert record.verdict == "skip"
    assert "has no ability 'LoadsTensors'" in record.message


def test_what_was_given_is_named(subject):
    assert loaded_tensors_differing(subject(NESTED), size="debug").details["given as"].startswith("nested NumPy arrays")
