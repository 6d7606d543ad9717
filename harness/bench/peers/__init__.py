"""Other people's GPT-2s to compare with, holding the same weights: each is there when its package is."""

from harness.bench.peers.ctranslate import CTranslate2, rounded_to_int8
from harness.bench.peers.hugging_face import HuggingFace
from harness.bench.peers.nanogpt import NanoGPT
from harness.bench.peers.registry import PEERS, Peer, peer

__all__ = ["PEERS", "CTranslate2", "HuggingFace", "NanoGPT", "Peer", "peer", "rounded_to_int8"]
