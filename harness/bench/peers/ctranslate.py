"""CTranslate2 as a peer: an engine in C++ that is given the very weights, for greedy decoding and for logits."""

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

HOW_TO_GET_IT = "pip install 'gpt-harness[peers]'"


class CTranslate2:
    """CTranslate2's GPT-2. `compute_type`: what its products are computed in, float32, int8 or bfloat16.

    Raises MissingResource where the package is not installed.
    """

    def __init__(self, compute_type: str = "float32") -> None:
        if importlib.util.find_spec("ctranslate2") is None:
            raise MissingResource(f"CTranslate2 is not installed: {HOW_TO_GET_IT}")
        self.compute_type = compute_type
        self.name = f"CTranslate2 ({compute_type})"

    def build(self, size: Size, *, seed: int = 0, dtype: str = "float32", device: str = "cpu", **options: Any) -> Model:
        """The engine with the probe weights, on as many threads as torch has now; it has no other seed, no options.

        Raises MissingAbility for another dtype: what it computes in is part of its name. Raises MissingResource
        where it does not have that on the device.
        """
        if options or dtype != "float32":
            asked = f"options {sorted(options)}" if options else dtype
            raise MissingAbility(f"{self.name} is built from float32 weights and without options, got {asked}")
        engine = Engine(size, self.compute_type, device)
        missing = "CTranslate2 keeps the weights in a form of its own"
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
        """Greedy continuation, with its cache: `ids` (B, T) int64 -> (B, T + new_tokens).

        Raises MissingAbility for a temperature, for generation without a cache, and beyond the context.
        """
        if temperature != 0:
            raise MissingAbility(f"{self.name} is here for greedy generation alone, temperature 0; got {temperature}")
        if use_cache is False:
            raise MissingAbility(f"{self.name} does not generate without its cache")
        return _engine(model).generate(ids, new_tokens)[0]

    def generate_with_logits(self, model: Model, ids: Tensor, new_tokens: int) -> tuple[Tensor, Tensor]:
        """The same, and the logits (B, new_tokens, V) that each new token was chosen from."""
        continued, logits = _engine(model).generate(ids, new_tokens, with_logits=True)
        assert logits is not None
        return continued, logits


class Engine(nn.Module):
    """CTranslate2's generator behind a call like a module's. It has no parameters that torch could see."""

    def __init__(self, size: Size, compute_type: str, device: str) -> None:
        super().__init__()
        self.size = size
        self.compute_type = compute_type
        self.device = torch.device(device)
        self.threads = torch.get_num_threads()
        self._generator: Any = None

    @property
    def generator(self) -> Any:
        """ctranslate2.Generator. Raises HarnessError where torch's number of threads is not that of the build."""
        if torch.get_num_threads() != self.threads:
            raise HarnessError(
                f"CTranslate2 was built for {self.threads} threads, and torch has {torch.get_num_threads()} by now; "
                "build it anew, so that all arms have the same"
            )
        return self._generator

    def take(self, published: Mapping[str, Tensor]) -> None:
        """Convert the published state dict and load it. Raises MissingResource without the package, or the type."""
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
        """Logits of every position: `ids` (B, T) int64 -> (B, T, V) float32."""
        return _tensor(self.generator.forward_batch(ids.tolist())).to(ids.device)

    def generate(self, ids: Tensor, new_tokens: int, *, with_logits: bool = False) -> tuple[Tensor, Tensor | None]:
        """`ids` (B, T) -> (B, T + new_tokens), and the logits (B, new_tokens, V) if asked for."""
        if ids.shape[1] + new_tokens > self.size.context:
            raise MissingAbility("CTranslate2 does not slide its window: it ends at the context")
        results = self.generator.generate_batch(
            [[str(token) for token in row] for row in ids.tolist()],
            max_length=new_tokens,
            end_token=[],  # by length alone, and no token's probability is suppressed, as min_length would
            include_prompt_in_result=False,  # the prompt in one pass, not token by token
            return_logits_vocab=with_logits,
        )
        new = torch.tensor([result.sequences_ids[0] for result in results], dtype=ids.dtype, device=ids.device)
        logits = None
        if with_logits:
            logits = torch.stack([torch.stack([_tensor(step) for step in result.logits[0]]) for result in results])
        return torch.cat((ids, new), dim=1), logits


class _Converted(Model):
    """A model whose weights are CTranslate2's."""

    def load(self, published: Mapping[str, Tensor]) -> Model:
        """Convert the published state dict anew."""
        _engine(self).take(published)
        return self

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """Nothing to do: it has no float64."""
        yield


def _engine(model: Model) -> Engine:
    assert isinstance(model.module, Engine)
    return model.module


def _call(module: nn.Module, ids: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return module(ids), None


def rounded_to_int8(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict with the values that CTranslate2's int8 can hold: 127 steps to each row's largest.

    Its rows are output channels, the columns of the checkpoint's (in, out). Positions, norms and biases stay.
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
    """The package, by its compiled part: without that it imports, and has no Generator."""
    try:
        importlib.import_module("ctranslate2._ext")
        return importlib.import_module("ctranslate2")
    except ImportError as error:
        raise MissingResource(f"CTranslate2 does not import ({error}): {HOW_TO_GET_IT}") from error


def _supported(package: ModuleType, device: torch.device) -> list[str]:
    try:
        return sorted(package.get_supported_compute_types(device.type, device.index or 0))
    except (RuntimeError, ValueError) as error:  # a build without CUDA, or another machine's device
        raise MissingResource(f"CTranslate2 does not run on {device}: {error}") from error


def _tensor(view: Any) -> Tensor:
    """A ctranslate2.StorageView, wherever it lies and in whatever type, as a float32 tensor of its own."""
    import numpy as np

    types = _package()
    return torch.from_numpy(np.array(view.to_device(types.Device.cpu).to(types.DataType.float32)))


def _specification(size: Size, published: Mapping[str, Tensor]) -> Any:
    """GPT-2 in CTranslate2's words, as its own converter (GPT2Loader in converters/transformers.py) sets it."""
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
    """Token 17 is called "17": prompts go in as strings. The special ones have to be some; none is ever used."""
    specification.register_vocabulary([str(token) for token in range(size.vocab_size)])
    specification.config.unk_token = specification.config.bos_token = specification.config.eos_token = "0"
