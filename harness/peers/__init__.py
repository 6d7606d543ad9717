"""Other people's GPT-2s to compare with, holding the same weights: each is there when its package is."""

from harness.peers.ctranslate import CTranslate2, rounded_to_int8
from harness.peers.hugging_face import HuggingFace
from harness.peers.nanogpt import NanoGPT
from harness.peers.registry import PEERS, Peer, peer

__all__ = ["PEERS", "CTranslate2", "HuggingFace", "NanoGPT", "Peer", "peer", "rounded_to_int8"]
