"""What the tests of an optimizer step share."""

from __future__ import annotations

import pytest

from lion_lightning.models.tokenizer import TokenizerSpec
from tests.tiny import tokenizer_folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerSpec:
    return TokenizerSpec(str(tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))))
