"""The protocols of a subject: one for each ability that a measure may require."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from harness.core.sizes import Size
from harness.subjects.expert_layer import ExpertLayer
from harness.subjects.model import Model
from harness.subjects.ranks.program import ParallelProgram

# The first line of each docstring is printed when a check is skipped: "... has no ability 'Generates': Continues ...".


@runtime_checkable
class Subject(Protocol):
    """Can be built at a size: the one ability that every subject has."""

    name: str

    def __hash__(self) -> int:
        """Return any hash: measurements of a subject are cached under it for the checks that follow."""
        ...

    def build(self, size: Size, *, seed: int = 0, dtype: str = "float32", device: str = "cpu", **options: Any) -> Model:
        """Return a new model in eval mode.

        `options` are attention, init, tied, dropout and bias, where the subject has them. Raises MissingAbility for a
        size or an option that the subject does not have.
        """
        ...


@runtime_checkable
class ChoosesAttention(Subject, Protocol):
    """Offers several implementations of attention, as `build(..., attention=NAME)`."""

    attentions: tuple[str, ...]


@runtime_checkable
class ChoosesInit(Subject, Protocol):
    """Offers several initialisation recipes, as `build(..., init=NAME)`."""

    recipes: tuple[str, ...]


@runtime_checkable
class Unties(Subject, Protocol):
    """Can be built with an untied head, as `build(..., tied=False)`."""

    unties: bool


@runtime_checkable
class Generates(Subject, Protocol):
    """Continues a prompt."""

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
        """Return `ids` (B, T) int64 with the new tokens appended, (B, T + new_tokens).

        Temperature 0 is greedy. With `use_cache=None` the subject decides.
        """
        ...


@runtime_checkable
class TakesOptions(Generates, Protocol):
    """Continues a prompt with further options, such as a token that ends it."""

    def generate_options(self, model: Model) -> tuple[str, ...]:
        """Return the parameters of its generate function other than the prompt and the number of tokens."""
        ...

    def generate_with(
        self,
        model: Model,
        ids: Tensor,
        new_tokens: int,
        options: Mapping[str, Any],
        *,
        greedy: bool = False,
        seed: int | None = None,
    ) -> Any:
        """Return the continuation of `ids` (B, T) as the function itself returns it.

        `options` are under its own names. The temperature is 1, or the choice greedy; nothing else filters the tokens.
        """
        ...


@runtime_checkable
class Speculates(Subject, Protocol):
    """Continues a prompt by speculative decoding: a draft proposes tokens, which the model accepts or rejects."""

    def drafts(self, model: Model) -> tuple[str, ...]:
        """Return the drafts that it takes: "model" for a second model, "prompt-lookup", "early-exit"."""
        ...

    def speculation_line(self, model: Model, draft: str) -> tuple[str, int]:
        """Return the file and the line of the function that decodes with such a draft."""
        ...

    def speculate(
        self,
        model: Model,
        draft: Model | str,
        ids: Tensor,
        new_tokens: int,
        *,
        lookahead: int = 4,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Return `ids` (1, T) int64 with the new tokens appended: all that the subject returns, (1, T + n).

        The draft is a model of the same vocabulary, or a kind of draft. Temperature 0 is greedy. Raises MissingAbility
        for a draft or a setting that the subject does not have.
        """
        ...


@runtime_checkable
class Caches(Subject, Protocol):
    """Decodes step by step with a key/value cache."""

    def new_cache(self, model: Model, batch_size: int) -> Any:
        """Return an empty cache for `batch_size` sequences of up to the model's context."""
        ...

    def step(self, model: Model, ids: Tensor, cache: Any) -> Tensor:
        """Append `ids` (B, T) to the cache and return the logits (B, T, V) of those positions."""
        ...


@runtime_checkable
class ChoosesCache(Caches, Protocol):
    """Offers several kinds of cache: "growing" concatenates keys and values at each step."""

    caches: tuple[str, ...]

    def new_cache(self, model: Model, batch_size: int, *, kind: str | None = None) -> Any:
        """Return an empty cache of that kind. With `kind=None` the subject decides."""
        ...


@runtime_checkable
class Checkpoints(Subject, Protocol):
    """Reads and writes a Hugging Face GPT-2 directory (config.json, model.safetensors)."""

    def load_checkpoint(self, directory: Path) -> Model:
        """Return the model stored in the directory."""
        ...

    def save_checkpoint(self, model: Model, directory: Path) -> None:
        """Write `model` so that Hugging Face's GPT2LMHeadModel can read it."""
        ...


@runtime_checkable
class MixesExperts(Subject, Protocol):
    """Has a mixture of experts in place of the MLP: a router that sends each token to some of several networks."""

    def build_experts(
        self,
        size: Size,
        *,
        experts: int,
        per_token: int,
        capacity_factor: float | None = None,
        seed: int = 0,
        dtype: str = "float64",
        device: str = "cpu",
    ) -> ExpertLayer:
        """Return one layer with random weights, in eval mode, without dropout.

        `capacity_factor` None drops no token. Raises MissingAbility for numbers that the subject has no setting for.
        """
        ...


@runtime_checkable
class LoadsTensors(Subject, Protocol):
    """Copies the tensors of a published checkpoint into a model by a function of its own."""

    tensor_loader_line: tuple[str, int]

    def load_tensors(self, model: Model, tensors: Any) -> Model:
        """Return the model with the tensors. `tensors` are whatever the function takes; it may raise anything."""
        ...


@runtime_checkable
class Parallelizes(Subject, Protocol):
    """Trains on several ranks, with functions that wrap a model (data parallel, sharded, tensor parallel)."""

    @property
    def parallel_program(self) -> ParallelProgram:
        """Its functions for several ranks, by what they do."""
        ...


class ServingEngine(Protocol):
    """An engine of continuous batching: requests arrive and leave between its steps.

    `lines` has the file and the line of its methods, by "submit", "step" and "cancel".
    """

    lines: Mapping[str, tuple[str, int]]

    @property
    def settings(self) -> frozenset[str]:
        """What it has of temperature, top_k, top_p, seed, stop and cancel."""
        ...

    def submit(self, ids: Sequence[int], new_tokens: int, **settings: Any) -> int:
        """Queue a prompt and return its number, from 0 up. It raises what the engine raises.

        `settings` are temperature (0 is greedy), top_k, top_p, seed, and stop, a token id.
        """
        ...

    def step(self) -> None:
        """Do one step of the engine; an idle engine does nothing."""
        ...

    def cancel(self, number: int) -> None:
        """End a request, wherever it is."""
        ...

    def tokens(self, number: int) -> list[int]:
        """Return the new tokens of a request so far."""
        ...

    def memory(self) -> list[Tensor]:
        """Return the float tensors that the engine and its model keep, without parameters and buffers."""
        ...


@runtime_checkable
class Serves(Subject, Protocol):
    """Serves many requests at once: an engine takes them at any time and continues all of them step by step."""

    engine_name: str

    def new_engine(self, model: Model, *, requests: int, positions: int, stop: int | None = None) -> ServingEngine:
        """Return an engine for at most `requests` at once, with memory for `positions` positions of all together.

        An engine with a slot for each request has as many slots, each as long as the context. `stop` is a token that
        ends every request. Raises MissingAbility if the engine has parameters that are not known.
        """
        ...


@runtime_checkable
class FitsScalingLaw(Subject, Protocol):
    """Fits a scaling law E + A/N^α + B/D^β to training runs."""

    fit_line: tuple[str, int]

    def fit_law(self, N: Any, D: Any, L: Any) -> Mapping[str, float]:
        """Return E, A, B, alpha and beta, from float64 arrays (runs,) of parameters, tokens and losses in nats."""
        ...


@runtime_checkable
class FitsIsoFlops(Subject, Protocol):
    """Fits the exponent of the best size to runs of several budgets."""

    iso_flops_line: tuple[str, int]

    def fit_iso_flops(self, C: Any, N: Any, D: Any, L: Any) -> float:
        """Return a of N_opt ~ C^a, from arrays (runs,) of FLOPs, parameters, tokens and losses."""
        ...


@runtime_checkable
class AllocatesCompute(Subject, Protocol):
    """Says how many parameters and tokens are best for a budget, by a scaling law."""

    allocation_line: tuple[str, int]

    def allocate(self, C: float, law: Mapping[str, float]) -> tuple[float, float | None]:
        """Return N_opt and D_opt (None if only N is given) for C FLOPs under a law E, A, B, alpha, beta."""
        ...


@runtime_checkable
class CountsTrainingFlops(Subject, Protocol):
    """Says what training costs, from parameters and tokens."""

    flops_line: tuple[str, int]

    def training_flops(self, N: float, D: float) -> float:
        """Return the FLOPs of training N parameters on D tokens."""
        ...


@runtime_checkable
class ReadsRuns(Subject, Protocol):
    """Reads a sweep's table of runs for the fit."""

    runs_line: tuple[str, int]

    def read_runs(self, path: Path) -> Mapping[str, Any]:
        """Return N, D and L, an array (runs,) each, of a CSV file."""
        ...
