"""``lion models``: each type is checked in a process of its own, and what fails is a line of the table."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from lion_lightning.cli import main
from lion_lightning.models.spec import PolicySpec
from lion_lightning.ops.chunked_logprobs import LogitTransform
from lion_lightning.tools.models import main as command
from lion_lightning.tools.models.check import (
    STEPS,
    ModelCheck,
    alone_logps,
    check_model,
    require_bidirectional,
    require_exact,
    trees,
)
from lion_lightning.tools.models.main import checked
from lion_lightning.tools.models.page import page
from lion_lightning.tools.models.tiny import tiny_config
from lion_lightning.types import Segment


def test_a_type_that_packs_passes_every_check(tmp_path: Path) -> None:
    check = check_model("llama", tmp_path)
    assert check == ModelCheck("llama", list(STEPS), packed=True)


def test_a_policy_whose_log_probs_are_not_the_models_is_found_out() -> None:
    policy = PolicySpec(config=tiny_config("llama")).build()
    require_exact(policy)
    policy.transform = LogitTransform(2.0)
    with pytest.raises(ValueError, match="from each sequence alone"):
        require_exact(policy)


def test_a_policy_that_stays_causal_within_a_prefix_is_found_out() -> None:
    policy = PolicySpec(config=tiny_config("rwkv")).build()
    policy.causal_only = None  # as if nothing had been found
    with pytest.raises(ValueError, match="with a bidirectional prompt, tokens see token 5 that should not, or do not"):
        require_bidirectional(policy)


def test_targets_of_trees_are_their_answers_and_all_of_a_document_but_its_first_token() -> None:
    batch = trees((4,), (3, 2, 5))
    assert batch.segments == (Segment(0, 4), Segment(4, 3), Segment(7, 2, 1), Segment(9, 5, 1))
    assert batch.targets.tolist() == batch.input_ids[[1, 2, 3, *range(7, 14)]].tolist()
    assert batch.logit_positions.tolist() == [0, 1, 2, 6, 7, 6, 9, 10, 11, 12]


def test_log_probs_of_a_sequence_alone_are_those_of_the_plain_model() -> None:
    policy = PolicySpec(config=tiny_config("llama")).build().eval()
    batch = trees((3, 2, 4))
    ids = batch.input_ids
    with torch.no_grad():
        second = policy.causal_lm(input_ids=torch.cat([ids[:3], ids[5:]])[None]).logits[0].log_softmax(-1)
        found = alone_logps(policy, batch)
    assert torch.allclose(found[2:], second[[2, 3, 4, 5], ids[5:]], atol=1e-6)


def test_a_process_that_ends_or_hangs_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model_type: str, folder: Path) -> ModelCheck:
        if model_type == "ends":
            os._exit(3)
        time.sleep(60)
        raise AssertionError

    monkeypatch.setattr(command, "check_model", fail)
    reasons = []
    for model_type, seconds in (("ends", 60), ("hangs", 5)):  # on a busy machine a process takes seconds to begin
        monkeypatch.setattr(command, "SECONDS", seconds)
        (check,) = checked([model_type], jobs=1)
        reasons.append(check.reason)
    assert reasons == ["its process ended with exit code 3", "not done after 5 s"]


def test_the_page_counts_packed_padded_and_refused() -> None:
    checks = [
        ModelCheck("a", [*STEPS], packed=True),
        ModelCheck("b", [step for step in STEPS if step not in ("packed", "prefix")], reason="layer | 3"),
        ModelCheck("c", failed="build", reason="no"),
        ModelCheck("d", ["build", "packed", "exact", "prefix"], packed=True, failed="DPO", reason="nan"),
    ]
    text = page(checks, minutes=2)
    assert "Of 4 types 1 pass every check packed (25%) and 1 padded; 1 are refused when they are built; 1 fail" in text
    assert "1 fail a later check. 2 take bidirectional prefixes." in text
    assert "| b | yes | no | yes | no | yes | yes | yes | layer \\| 3 |" in text
    assert "| c | no |  |  |  |  |  |  | no |" in text
    assert "| d | yes | yes | yes | yes | no |  |  | nan |" in text


def test_an_unknown_type_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "lama"]) == 2
    assert "knows no type 'lama' of causal LM; did you mean 'llama'?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_type", ["gemma3", "qwen3_moe", "deepseek_v3", "gpt_oss", "qwen3_5_text", "lfm2", "mamba2"]
)
def test_families_of_today_pass(model_type: str, tmp_path: Path) -> None:
    check = check_model(model_type, tmp_path)
    assert (check.failed, check.packed) == ("", True), check
