"""The engine of continuous batching: requests come and go between steps, and each gets the tokens it gets alone."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from gpt.errors import ContextError, ServingError, TokenError
from gpt.generate import check_arguments, check_prompt, evaluating
from gpt.network import Network
from gpt.seeds import generator_of
from gpt.serving.paged_cache import PagedCache, RaggedStep, Span
from gpt.serving.request import FINISHED, Request
from gpt.serving.scheduler import Scheduler


class Engine:
    """Serves requests of any length with one model: each step computes one pass over the new tokens of all of them.

    The step is ragged: some requests read their prompt, others decode one token, packed into one row without padding.
    A request enters as soon as there is room, and leaves with its last token (Yu et al. 2022, "Orca").

    Args:
        model: the network; it is put in eval mode during each step.
        pages: the number of pages of the cache; by default enough for `max_batch` requests as long as the context.
        page_size: the positions in a page.
        max_batch: the most requests that run at once.
        max_step_tokens: the most tokens of one step; a longer prompt is read in several. By default the context.

    Raises `ServingError` for a size below 1, or a step that has no room for one token of each running request.
    """

    def __init__(
        self,
        model: Network,
        *,
        pages: int | None = None,
        page_size: int = 16,
        max_batch: int = 8,
        max_step_tokens: int | None = None,
    ) -> None:
        config = model.config
        if page_size < 1 or max_batch < 1:
            raise ServingError(f"page_size={page_size}, max_batch={max_batch}; expected at least 1 of each")
        max_step_tokens = max(config.block_size, max_batch) if max_step_tokens is None else max_step_tokens
        if max_step_tokens < max_batch:
            raise ServingError(f"max_step_tokens={max_step_tokens} is below max_batch={max_batch}: decoding would stop")
        pages = max_batch * -(-config.block_size // page_size) if pages is None else pages
        like = model.new_cache(1, positions=1).keys  # in the dtype and on the device of the weights
        self.model = model
        self.cache = PagedCache(config, pages, page_size, dtype=like.dtype, device=like.device)
        self.scheduler = Scheduler(self.cache, max_batch=max_batch, max_step_tokens=max_step_tokens)

    @property
    def idle(self) -> bool:
        """True if no request waits or runs."""
        return not self.scheduler.waiting and not self.scheduler.running

    def submit(
        self,
        ids: Sequence[int] | Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: int | Collection[int] | None = None,
    ) -> Request:
        """Queue a prompt of ids (T) and return its request, whose `tokens` grow with the steps that follow.

        The arguments are those of `gpt.generate`; `stop` is a token, or several, after which the request ends. With a
        `seed` the request has its own random numbers, so its tokens depend on no neighbour.

        Raises `GenerationError` for an argument out of range, `TokenError` for a prompt that is not token ids,
        `ContextError` for a request longer than the context, and `ServingError` for one that the cache can never hold.
        """
        config, device = self.model.config, self.cache.keys.device
        check_arguments(max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
        try:
            prompt = torch.as_tensor(ids, device=device).reshape(1, -1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TokenError(f"the prompt is {type(ids).__name__} ({error}); expected token ids") from error
        check_prompt(prompt, config.vocab_size, config.block_size)
        request = Request(
            tuple(prompt[0].tolist()),
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            (stop,) if isinstance(stop, int) else tuple(stop or ()),
            generator_of(seed, device),
        )
        self._check_length(request)
        if max_new_tokens == 0:
            request.status = FINISHED
        else:
            self.scheduler.waiting.append(request)
        return request

    @torch.no_grad()
    def step(self) -> list[tuple[Request, int]]:
        """Compute one pass over the new tokens of all running requests, and return the tokens that they got.

        A request whose prompt is not read to its end yet gets none. An idle engine returns an empty list.
        """
        self.scheduler.admit()
        parts = self.scheduler.parts()
        if not parts:
            assert self.idle, "with all pages free there is room for any request that was accepted"
            return []
        packed = torch.tensor([[token for _, ids in parts for token in ids]], device=self.cache.keys.device)  # (1, N)
        spans = [Span(request.pages, request.cached, len(ids)) for request, ids in parts]
        with evaluating(self.model):
            # (1, N) -> (1, requests, V): the logits after the latest token of each
            logits, _ = self.model(packed, cache=RaggedStep(self.cache, spans), last_only=True)
        produced = []
        for row, (request, ids) in enumerate(parts):
            request.cached += len(ids)
            if request.is_read:
                produced.append((request, request.continue_from(logits[:, row])))
                if request.done:
                    self.scheduler.leave(request)
        return produced

    def run(self) -> None:
        """Step until no request is left."""
        while not self.idle:
            self.step()

    def cancel(self, request: Request) -> None:
        """End a request, before it starts or in the middle; it keeps its tokens, and its memory is free at once."""
        self.scheduler.cancel(request)

    def _check_length(self, request: Request) -> None:
        context = self.model.config.block_size
        length = f"a prompt of {len(request.prompt)} and {request.max_new_tokens} new tokens"
        if request.positions > context:
            raise ContextError(f"{length} take {request.positions} positions, and the context has {context}")
        needed = self.cache.pages_for(request.positions)
        if needed > self.cache.pages:
            raise ServingError(
                f"{length} need {needed} pages of {self.cache.page_size}; found {self.cache.pages} in all"
            )
