"""Continuous batching: requests of any length arrive and leave between two steps of one model."""

from gpt.serving.engine import Engine
from gpt.serving.paged_cache import PagedCache
from gpt.serving.request import Request

__all__ = ["Engine", "PagedCache", "Request"]
