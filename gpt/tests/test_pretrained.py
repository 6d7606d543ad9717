"""Saving and loading: bitwise equal, damaged files rejected by name, and no download without need."""

import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from gpt import GPT, ConfigError, GPTConfig, WeightsError, WeightsUnavailable
from gpt.pretrained import config_from_huggingface
from gpt.tests.examples import debug, ids
from gpt.weights import to_huggingface


@pytest.fixture
def saved(tmp_path):
    """Return a directory written by save_pretrained."""
    debug().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


# ---------------------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"attention": "looped"}, {"dropout": 0.25}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_saved_model_comes_back_bitwise_in_eval_mode(tmp_path, changes, dtype):
    model = debug(**changes).to(dtype)
    model.save_pretrained(tmp_path)
    back = GPT.from_pretrained(tmp_path, attention=model.config.attention)
    assert back.config == model.config
    assert same(back, model)
    assert not back.training
    assert (back.lm_head.weight is back.transformer["wte"].weight) == model.config.tied


@pytest.mark.parametrize("tied", [True, False])
def test_hugging_face_and_ours_read_what_the_other_saves(tmp_path, tied):
    from transformers import GPT2LMHeadModel

    model = debug(tied=tied)
    model.save_pretrained(tmp_path / "ours")
    theirs, loading = GPT2LMHeadModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(loading.values()), loading
    torch.testing.assert_close(theirs(ids()).logits, model(ids())[0], rtol=1e-4, atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    assert same(GPT.from_pretrained(tmp_path / "theirs", dropout=0.0), model)


def test_the_caller_chooses_attention_dropout_and_dtype(saved):
    model = GPT.from_pretrained(saved, attention="naive", dropout=0.1, dtype=torch.float64)
    assert (model.config.attention, model.config.dropout) == ("naive", 0.1)
    torch.testing.assert_close(model(ids())[0], debug().double()(ids())[0])


def test_a_subclass_loads_as_itself(saved):
    class Mine(GPT):
        pass

    assert type(Mine.from_pretrained(saved)) is Mine


def test_a_loaded_model_owns_its_memory(saved):
    """A view of the memory-mapped file would change with the file, or crash the process."""
    model = GPT.from_pretrained(saved)
    (saved / "model.safetensors").write_bytes(b"")
    assert same(model, debug())
    assert all(parameter.is_contiguous() and parameter.requires_grad for parameter in model.parameters())


def test_shards_are_read_as_one(tmp_path):
    from safetensors.torch import save_file

    debug().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tensors = to_huggingface(debug())
    halves = {"model-1.safetensors": list(tensors)[::2], "model-2.safetensors": list(tensors)[1::2]}
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, tmp_path / file)
    index = {"weight_map": {name: file for file, names in halves.items() for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(GPT.from_pretrained(tmp_path), debug())
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(WeightsUnavailable, match=r"names model-2.safetensors, which does not exist"):
        GPT.from_pretrained(tmp_path)
    index["weight_map"]["transformer.wte.weight"] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="expected a file beside it"):
        GPT.from_pretrained(tmp_path)


# ---------------------------------------------------------------------------- damaged and unsupported checkpoints


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    raw = bytearray(path.read_bytes())
    raw[-1000] ^= 1
    path.write_bytes(raw)


def put(text):
    return lambda path: path.write_bytes(text)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.safetensors", truncate, "model.safetensors: not a whole safetensors file"),
        ("model.safetensors", put(b""), "not a whole safetensors file"),
        ("model.safetensors", put(b"version https://git-lfs.github.com/spec/v1"), "not a whole safetensors file"),
        ("model.safetensors", flip_a_bit, "sha256 [0-9a-f]{64}, expected [0-9a-f]{64}; the file was changed"),
        ("config.json", truncate, "config.json: not a JSON file"),
        ("config.json", put(b'{"a":' * 10**5), "config.json: not a JSON file"),
        ("config.json", put(b"[]"), "config.json: contains a list; expected a JSON object"),
    ],
)
def test_a_truncated_or_changed_checkpoint_is_rejected_by_name(saved, file, damage, message):
    damage(saved / file)
    with pytest.raises(WeightsError, match=message):
        GPT.from_pretrained(saved)


def test_a_checkpoint_that_does_not_fit_its_configuration_is_rejected(saved):
    edit(saved, n_layer=2)
    with pytest.raises(WeightsError, match=r"model: the weights do not fit the model; unknown.*h\.2\."):
        GPT.from_pretrained(saved)


def test_a_configuration_of_a_million_layers_is_compared_with_the_file_before_a_model_is_built(saved):
    """Building them, even on meta, once took minutes and gigabytes before the file was read."""

    class Counted(GPT):
        def __init__(self, config, **options):
            raise AssertionError("a model was built")

    edit(saved, n_layer=1_000_000)
    with pytest.raises(WeightsError, match="has 1,000,000 layers, the weights only"):
        Counted.from_pretrained(saved)


def test_a_pickle_is_not_opened(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(
        WeightsUnavailable, match=r"contains pytorch_model.bin and no model.safetensors; opening a pickle"
    ):
        GPT.from_pretrained(saved)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "gpt_neo"),
        ("activation_function", "gelu"),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("reorder_and_upcast_attn", True),
        ("add_cross_attention", True),
        ("n_inner", 100),
        ("n_head", 5),
        ("attn_pdrop", 0.3),
        ("vocab_size", "211"),
        ("n_embd", None),
        ("embd_pdrop", []),
    ],
)
def test_a_configuration_of_another_function_is_a_named_error(saved, key, value):
    edit(saved, **{key: value})
    with pytest.raises(ConfigError, match=rf"config.json: .*{key}"):
        GPT.from_pretrained(saved)


def test_the_published_configuration_is_gpt2():
    published = {  # the hub's file for gpt2, without its summary_ and task_ keys
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "vocab_size": 50257,
    }
    assert config_from_huggingface(published) == GPTConfig(dropout=0.1)
    assert config_from_huggingface(published, dropout=0.0) == GPTConfig()


# ---------------------------------------------------------------------------- saving


def test_a_failed_save_leaves_the_old_checkpoint_and_nothing_else(saved, monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        debug(dropout=0.5).save_pretrained(saved)
    monkeypatch.undo()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(WeightsError, match="the disk is full"):
        debug(dropout=0.5).save_pretrained(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert same(GPT.from_pretrained(saved), debug())


def test_a_saved_file_has_the_default_permissions(saved):
    other = saved / "other"
    other.touch()
    for file in ("config.json", "model.safetensors"):
        assert stat.S_IMODE((saved / file).stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_a_folder_that_cannot_be_written_is_a_named_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="cannot be saved there"):
        debug().save_pretrained(tmp_path / "file")


# ---------------------------------------------------------------------------- the hub


def test_a_missing_path_is_not_searched_for_on_the_hub():
    with pytest.raises(WeightsUnavailable, match=r"\./nowhere/model: no such directory"):
        GPT.from_pretrained("./nowhere/model")


REPOSITORIES = {  # how the loopback hub changes the weights of each
    "openai-community/gpt2": lambda raw: raw,
    "someone/cut-off": lambda raw: raw[:-100],
    "someone/changed": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
    "someone/empty": None,
}


@pytest.fixture
def hub(saved):
    """Serve as much of the hub as a download needs; return its address and the files that were requested."""
    requested = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            repository, _, file = self.path.strip("/").partition("/resolve/main/")
            weights = REPOSITORIES.get(repository) and "model.safetensors"
            found = repository in REPOSITORIES and file in ("config.json", weights)
            raw = (saved / file).read_bytes() if found else b""
            self.send_response(200 if found else 404)
            if not found:
                self.send_header("X-Error-Code", "EntryNotFound" if repository in REPOSITORIES else "RepoNotFound")
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(raw).hexdigest()}"')
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            if found and self.command == "GET":
                requested.append((repository, file))
                self.wfile.write(raw if file == "config.json" else REPOSITORIES[repository](raw))

        do_GET = do_HEAD  # noqa: N815 - the names are http.server's

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requested
    server.shutdown()
    server.server_close()


SCRIPT = """
import time
time.sleep = lambda seconds: None  # the hub's client waits before it retries

from gpt import GPT, WeightsError
from gpt.tests.examples import debug
from gpt.tests.test_pretrained import same

for name in ("gpt2", "gpt2", "someone/cut-off", "someone/changed", "someone/changed", "someone/empty", "no/such"):
    try:
        print(name, same(GPT.from_pretrained(name), debug()))
    except WeightsError as error:
        print(name, type(error).__name__, str(error).replace(chr(10), " "))
"""


def test_the_hub_is_called_once_and_its_files_are_verified(tmp_path, hub):
    address, requested = hub
    home = tmp_path / "home"
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HTTP_PROXY", "http_proxy"):
        environment.pop(name, None)
    # In a process of its own: huggingface_hub reads its environment when it is imported.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    first, again, short, changed, still, empty, missing = done.stdout.splitlines()
    assert first == again == "gpt2 True"
    assert "WeightsUnavailable someone/cut-off: model.safetensors cannot be fetched" in short
    assert "WeightsError" in changed
    assert "has the sha256" in changed
    assert still == changed
    assert "WeightsUnavailable someone/empty on the hub: contains no model.safetensors" in empty
    assert "WeightsUnavailable no/such: config.json cannot be fetched from the hub (404" in missing
    assert requested.count(("openai-community/gpt2", "model.safetensors")) == 1
    assert not list(home.rglob("models--someone--cut-off/**/*.safetensors"))


def test_without_a_network_the_message_has_the_download_command(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(WeightsUnavailable, match=r"cannot be reached.*hf download a/b config.json model.safetensors"):
        GPT.from_pretrained("a/b")
    with pytest.raises(WeightsUnavailable, match="not in the hub's local cache"):
        GPT.from_pretrained("a/b", download=False)
