"""Fixtures of unit tests of several folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lion_lightning.models.tokenizer import TokenizerSpec


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerSpec:
    """The tiny tokenizer; a file that needs another has a fixture of this name."""
    from lion_lightning.models.tokenizer import TokenizerSpec  # imported late, as in tests/conftest.py
    from tests.tiny import tokenizer_folder

    return TokenizerSpec(str(tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))))
