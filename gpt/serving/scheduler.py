"""The scheduler: which requests run, who comes next, and which of their tokens a step computes."""

from collections import deque

from gpt.serving.paged_cache import PagedCache
from gpt.serving.request import CANCELLED, RUNNING, WAITING, Request


class Scheduler:
    """First come, first served: a request starts when the pages for its whole length are free, and never before
    one that came earlier.

    Pages are reserved at once and not page by page. A running request can then always go on: none is interrupted and
    computed again, and no two wait for one another's memory. The price is memory that a request which stops early has
    never used. Nobody overtakes, so nobody starves: every running request ends after at most `max_new_tokens` steps,
    and then its pages are free for the first that waits.
    """

    def __init__(self, cache: PagedCache, *, max_batch: int, max_step_tokens: int) -> None:
        self.cache = cache
        self.max_batch = max_batch
        self.max_step_tokens = max_step_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def admit(self) -> None:
        """Start waiting requests, in their order, as long as there is room for the first of them."""
        while self.waiting and len(self.running) < self.max_batch:
            needed = self.cache.pages_for(self.waiting[0].positions)
            if needed > len(self.cache.free):
                return
            request = self.waiting.popleft()
            request.pages, request.status = self.cache.take(needed), RUNNING
            self.running.append(request)

    def parts(self) -> list[tuple[Request, list[int]]]:
        """Return the ids that this step computes of each running request, at most `max_step_tokens` in all.

        Requests that decode come first, with one token each, so that a long prompt does not delay them; what is left
        of the step is for prompts, in the order of arrival, in parts if they are longer.
        """
        left = self.max_step_tokens
        found = []
        for request in sorted(self.running, key=lambda each: not each.tokens):  # stable: in the order of arrival
            if ids := request.next_ids(left):
                found.append((request, ids))
                left -= len(ids)
        return found

    def leave(self, request: Request) -> None:
        """Give the pages of a request that has ended back."""
        self.running.remove(request)
        self.cache.give_back(request.pages)

    def cancel(self, request: Request) -> None:
        """End a request, wherever it is; one that has ended stays as it is."""
        if request.status == WAITING:
            self.waiting.remove(request)
        elif request.status == RUNNING:
            self.leave(request)
        else:
            return
        request.status = CANCELLED
