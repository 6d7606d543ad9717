"""Peers: other implementations of GPT-2 with the same weights, each available if its package is installed."""

from harness.bench.peers.ctranslate2 import CTranslate2, rounded_to_int8
from harness.bench.peers.hugging_face import HuggingFace
from harness.bench.peers.nanogpt import NanoGPT
from harness.bench.peers.registry import PEERS, Peer, peer

__all__ = ["PEERS", "CTranslate2", "HuggingFace", "NanoGPT", "Peer", "peer", "rounded_to_int8"]
