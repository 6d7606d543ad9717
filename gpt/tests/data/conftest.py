"""Fixtures for the tests of texts, token files and batches."""

import pytest

from gpt.data import published


@pytest.fixture
def gpt2_at_hand():
    """Skip a test if GPT-2's two vocabulary files are not on this machine."""
    folders = published.places(published.VOCABULARY)
    if not any(all((folder / source.file).is_file() for source in published.VOCABULARY) for folder in folders):
        pytest.skip("GPT-2's vocabulary is not on this machine; `python -m gpt.data` fetches it")
