"""New tokens start at the mean, nothing else moves, and only chosen rows learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from lion_lightning.models.embeddings import TrainableRows, add_token_rows, new_token_ids
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules import SFTModule
from lion_lightning.modules.trainer.sharding import require_rows_of
from tests.tiny import TREE, VOCABULARY, Rows, config, policy, row, tokenizer_folder, trainer


def weights(model: Any) -> tuple[Tensor, Tensor]:
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean_and_old_rows_are_untouched_bit_for_bit(tied: bool) -> None:
    model = policy(tie_word_embeddings=tied).causal_lm
    before = [weight.detach().clone() for weight in weights(model)]
    add_token_rows(model, VOCABULARY + 2, [VOCABULARY, VOCABULARY + 1])
    for old, new in zip(before, weights(model), strict=True):
        assert new.shape == (VOCABULARY + 2, 32)
        assert torch.equal(new[:VOCABULARY], old)
        torch.testing.assert_close(new[VOCABULARY:], old.mean(0).expand(2, -1), rtol=0, atol=1e-7)
    assert (weights(model)[0] is weights(model)[1]) == tied
    assert model.config.vocab_size == VOCABULARY + 2


def test_a_new_token_in_a_padded_vocabulary_gets_the_mean_of_the_other_rows() -> None:
    model = policy(tie_word_embeddings=False).causal_lm  # 101 rows, a tokenizer of 97, whose last token is new
    before = [weight.detach().clone() for weight in weights(model)]
    add_token_rows(model, 97, [96])
    for old, new in zip(before, weights(model), strict=True):
        others = [number for number in range(VOCABULARY) if number != 96]
        assert new.shape == old.shape
        assert torch.equal(new[others], old[others])
        torch.testing.assert_close(new[96], old[others].mean(0), rtol=0, atol=1e-7)


def test_a_tokenizer_without_new_tokens_changes_nothing() -> None:
    model = policy().causal_lm
    before = [weight.detach().clone() for weight in weights(model)]
    add_token_rows(model, 50, [])
    assert all(torch.equal(old, new) for old, new in zip(before, weights(model), strict=True))


def test_a_bias_of_the_head_grows_with_it() -> None:
    model = policy("phi", tie_word_embeddings=False)
    add_token_rows(model.causal_lm, VOCABULARY + 2, [])
    assert model.causal_lm.get_output_embeddings().bias.shape == (VOCABULARY + 2,)
    assert torch.isfinite(model(row(*TREE)).values).all()


def test_only_special_tokens_that_the_tokenizer_lacked_are_new(tmp_path: Path) -> None:
    path = str(tokenizer_folder(tmp_path))
    assert new_token_ids(TokenizerSpec(path)) == []
    assert new_token_ids(TokenizerSpec(path, special_tokens=("<|im_end|>", "<a>"))) == [VOCABULARY]


@pytest.mark.parametrize("rows", [[], [VOCABULARY], [-1, 4]])
def test_rows_that_do_not_exist_are_refused(rows: list[int]) -> None:
    with pytest.raises(ValueError, match=f"not within the {VOCABULARY} rows"):
        TrainableRows(policy().causal_lm, rows)


def test_masking_zeroes_the_gradient_of_every_other_row_and_no_other_parameters() -> None:
    model = policy(tie_word_embeddings=True)
    model(row(*TREE)).values.sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    TrainableRows(model.causal_lm, [4, 90]).mask_gradients()
    for name, parameter in model.named_parameters():
        expected = before[name].clone()
        if "embed_tokens" in name:
            expected[[number for number in range(VOCABULARY) if number not in (4, 90)]] = 0
            assert expected[[4, 90]].any()
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, expected), name


def test_rows_are_refused_under_the_strategy_that_flattens_them() -> None:
    rows = TrainableRows(policy().causal_lm, [1])
    with pytest.raises(MisconfigurationException, match="FSDPStrategy flattens weights"):
        require_rows_of(rows, FSDPStrategy())
    require_rows_of(None, FSDPStrategy())


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_are_not_chosen_stay_bit_equal_under_adamw_with_weight_decay(tied: bool, tmp_path: Path) -> None:
    chosen = [4, 50]
    module = SFTModule(
        PolicySpec(config=config(tie_word_embeddings=tied), trainable_rows=chosen),
        tokenizer=TokenizerSpec(str(tokenizer_folder(tmp_path))),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.5),
    )
    module.configure_model()
    model = module.policy_model.causal_lm
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batches = [row(seed=seed) for seed in range(3)]
    batches[0].input_ids[[2, 9]] = torch.tensor(chosen)  # an untied row learns only from where its token stands
    trainer(max_steps=3).fit(module, Rows(batches))
    others = [number for number in range(VOCABULARY) if number not in chosen]
    for name, parameter in model.named_parameters():
        if parameter.shape[0] == VOCABULARY:
            assert torch.equal(parameter[others], before[name][others]), name
            assert (parameter[chosen] != before[name][chosen]).any(1).all(), name
        else:
            assert not torch.equal(parameter, before[name]), name
