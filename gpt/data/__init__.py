"""Text, vocabularies, token files and batches; `python -m gpt.data` fetches the text and GPT-2's vocabulary."""

from gpt.data.corpus import Corpus, corpus
from gpt.data.loader import Batch, Loader
from gpt.data.published import TEXTS, VOCABULARY, Source, cache_folder, locate
from gpt.data.text import load_text, tokenizer, tokens
from gpt.data.token_file import TokenFile
from gpt.data.vocabulary import Vocabulary, vocabulary
from gpt.data.windows import Windows, windows

__all__ = [
    "TEXTS",
    "VOCABULARY",
    "Batch",
    "Corpus",
    "Loader",
    "Source",
    "TokenFile",
    "Vocabulary",
    "Windows",
    "cache_folder",
    "corpus",
    "load_text",
    "locate",
    "tokenizer",
    "tokens",
    "vocabulary",
    "windows",
]
