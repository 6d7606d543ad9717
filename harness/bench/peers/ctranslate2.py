"""CTranslate2 as a peer: an engine in C++ with the same weights, for greedy decoding and for logits."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import tempfile
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import HarnessError, MissingAbility, MissingResource
from harness.core.sizes import Size
from harness.oracle.probe_weights import state
from harness.subjects.model import Model
from harness.subjects.weight_map import family

INSTALL = "pip install 'gpt-harness[peers]'"


class CTranslate2:
    """CTranslate2's GPT-2.

    compute_type: the type of its matrix products: float32, int8 or bfloat16.

    Raises MissingResource if the package is not installed.
    """

    def __init__(self, compute_type: str = "float32") -> None:
        if importlib.util.find_spec("ctranslate2") is None:
            raise MissingResource(f"CTranslate2 is not installed: {INSTALL}")
        self.compute_type = compute_type
        self.name = f"CTranslate2 ({compute_type})"

    def build(self, size: Size, *, seed: int = 0, dtype: str = "float32", device: str = "cpu", **options: Any) -> Model:
        """Return the engine with the probe weights, on as many threads as torch has now. `seed` has no effect.

        Raises MissingAbility for options, and for a dtype other than float32: the compute type is part of the name.
        Raises MissingResource if the device does not have the compute type.
        """
        if options or dtype != "float32":
            got = f"options {sorted(options)}" if options else dtype
            raise MissingAbility(f"{self.name} is built from float32 weights and without options, got {got}")
        engine = Engine(size, self.compute_type, device)
        missing = "CTranslate2 converts the weights to its own format"
        return _Converted(engine, size, _call, None, missing).load(state(size.name, "probe"))

    def generate(
        self,
        model: Model,
        ids: Tensor,
        new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        use_cache: bool | None = None,
    ) -> Tensor:
        """Continue greedily with its cache: `ids` (B, T) int64 -> (B, T + new_tokens).

        Raises MissingAbility for a temperature, for generation without a cache, and beyond the context.
        """
        if temperature != 0:
            raise MissingAbility(f"{self.name} only generates greedily, with temperature 0; got {temperature}")
        if use_cache is False:
            raise MissingAbility(f"{self.name} does not generate without its cache")
        return _engine(model).generate(ids, new_tokens)[0]

    def generate_with_logits(self, model: Model, ids: Tensor, new_tokens: int) -> tuple[Tensor, Tensor]:
        """Continue greedily, and return the logits (B, new_tokens, V) that the new tokens were chosen from as well."""
        continued, logits = _engine(model).generate(ids, new_tokens, with_logits=True)
        assert logits is not None
        return continued, logits


class Engine(nn.Module):
    """CTranslate2's generator as a module. It has no parameters of torch."""

    def __init__(self, size: Size, compute_type: str, device: str) -> None:
        super().__init__()
        self.size = size
        self.compute_type = compute_type
        self.device = torch.device(device)
        self.threads = torch.get_num_threads()
        self._generator: Any = None

    @property
    def generator(self) -> Any:
        """ctranslate2.Generator. Raises HarnessError if torch's number of threads has changed since the build."""
        if torch.get_num_threads() != self.threads:
            raise HarnessError(
                f"CTranslate2 was built for {self.threads} threads, and torch has {torch.get_num_threads()} now; "
                "build it again, so that all arms have the same number"
            )
        return self._generator

    def load(self, published: Mapping[str, Tensor]) -> None:
        """Convert the published state dict and load it.

        Raises MissingResource if the package does not import, or if the device does not have the compute type.
        """
        package = _package()
        supported = _supported(package, self.device)
        if self.compute_type not in supported:
            raise MissingResource(
                f"CTranslate2 has no {self.compute_type} on this {self.device.type}; it has {', '.join(supported)}"
            )
        specification = _specification(self.size, published)
        with tempfile.TemporaryDirectory() as folder:
            specification.save(folder)
            self._generator = package.Generator(
                folder,
                device=self.device.type,
                device_index=self.device.index or 0,
                compute_type=self.compute_type,
                intra_threads=self.threads,
                inter_threads=1,
            )

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits of every position: `ids` (B, T) int64 -> (B, T, V) float32."""
        return _tensor(self.generator.forward_batch(ids.tolist())).to(ids.device)

    def generate(self, ids: Tensor, new_tokens: int, *, with_logits: bool = False) -> tuple[Tensor, Tensor | None]:
        """Continue `ids` (B, T) -> (B, T + new_tokens). Also return the logits (B, new_tokens, V), or None."""
        if ids.shape[1] + new_tokens > self.size.context:
            raise MissingAbility("CTranslate2 does not slide its window: it ends at the context")
        results = self.generator.generate_batch(
            [[str(token) for token in row] for row in ids.tolist()],
            max_length=new_tokens,
            end_token=[],  # only the length ends it; unlike min_length, this suppresses no token's probability
            include_prompt_in_result=False,  # the prompt in one pass, not token by token
            return_logits_vocab=with_logits,
        )
        new = torch.tensor([result.sequences_ids[0] for result in results], dtype=ids.dtype, device=ids.device)
        logits = None
        if with_logits:
            logits = torch.stack([torch.stack([_tensor(step) for step in result.logits[0]]) for result in results])
        return torch.cat((ids, new), dim=1), logits


class _Converted(Model):
    """A model whose weights are in CTranslate2's format."""

    def load(self, published: Mapping[str, Tensor]) -> Model:
        """Convert the published state dict and load it."""
        _engine(self).load(published)
        return self

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """Do nothing: it has no float64."""
        yield


def _engine(model: Model) -> Engine:
    assert isinstance(model.module, Engine)
    return model.module


def _call(module: nn.Module, ids: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return module(ids), None


def rounded_to_int8(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published state dict rounded to CTranslate2's int8: 127 steps to the largest value of each row.

    Rows are output channels: the columns of the checkpoint's (in, out). Position embeddings, norms and biases are not
    rounded.
    Source: `LayerSpec._quantize` of ctranslate2/specs/model_spec.py.
    """
    rounded = dict(published)
    for name, tensor in published.items():
        if tensor.ndim == 2 and family(name) != "wpe.weight":
            axis = 1 if family(name) == "wte.weight" else 0
            scale = 127 / tensor.abs().amax(axis, keepdim=True)
            rounded[name] = (tensor * scale).round() / scale
    return rounded


def _package() -> ModuleType:
    """Import the package with its compiled part: without it, the package imports but has no Generator."""
    try:
        importlib.import_module("ctranslate2._ext")
        return importlib.import_module("ctranslate2")
    except ImportError as error:
        raise MissingResource(f"CTranslate2 does not import ({error}): {INSTALL}") from error


def _supported(package: ModuleType, device: torch.device) -> list[str]:
    try:
        return sorted(package.get_supported_compute_types(device.type, device.index or 0))
    except (RuntimeError, ValueError) as error:  # a build without CUDA, or another machine's device
        raise MissingResource(f"CTranslate2 does not run on {device}: {error}") from error


def _tensor(view: Any) -> Tensor:
    """Copy a ctranslate2.StorageView, on any device and of any type, to a float32 tensor on the CPU."""
    import numpy as np

    types = _package()
    return torch.from_numpy(np.array(view.to_device(types.Device.cpu).to(types.DataType.float32)))


def _specification(size: Size, published: Mapping[str, Tensor]) -> Any:
    """Return GPT-2 as a specification of CTranslate2, as its own GPT2Loader (converters/transformers.py) does."""
    from ctranslate2.specs import TransformerDecoderModelSpec
    from ctranslate2.specs.common_spec import Activation

    def array(name: str) -> Any:
        return published[f"transformer.{name}"].detach().float().cpu().numpy()

    def norm(into: Any, name: str) -> None:
        into.gamma, into.beta = array(f"{name}.weight"), array(f"{name}.bias")

    def linear(into: Any, name: str) -> None:
        into.weight, into.bias = array(f"{name}.weight").T, array(f"{name}.bias")  # it keeps (out, in)

    specification = TransformerDecoderModelSpec.from_config(
        size.layers, size.heads, pre_norm=True, activation=Activation.GELUTanh
    )
    decoder = specification.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = decoder.projection.weight = array("wte.weight")
    decoder.position_encodings.encodings = array("wpe.weight")
    norm(decoder.layer_norm, "ln_f")
    for layer, into in enumerate(decoder.layer):
        norm(into.self_attention.layer_norm, f"h.{layer}.ln_1")
        linear(into.self_attention.linear[0], f"h.{layer}.attn.c_attn")
        linear(into.self_attention.linear[1], f"h.{layer}.attn.c_proj")
        norm(into.ffn.layer_norm, f"h.{layer}.ln_2")
        linear(into.ffn.linear_0, f"h.{layer}.mlp.c_fc")
        linear(into.ffn.linear_1, f"h.{layer}.mlp.c_proj")
    _name_tokens(specification, size)
    specification.validate()
    specification.optimize()  # one matrix for embedding and head
    return specification


def _name_tokens(specification: Any, size: Size) -> None:
    """Name token 17 "17", because prompts are strings. The special tokens must be set, and are never used."""
    specification.register_vocabulary([str(token) for token in range(size.vocab_size)])
    specification.config.unk_token = specification.config.bos_token = specification.config.eos_token = "0"
