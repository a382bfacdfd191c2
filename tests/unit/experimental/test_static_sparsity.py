"""Sparse pre-training: which weights stay zero, what the optimizer sees of them, and what a run refuses."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from lion_lightning import LoRASpec, PolicySpec, SFTModule, TokenizerSpec
from lion_lightning.callbacks.optimization.fused_backward import FusedBackward
from lion_lightning.experimental.static_sparsity import (
    StaticSparsity,
    forward_flops_per_token,
    prunable,
    random_mask,
)
from lion_lightning.types import LossOutput, PackedBatch
from tests import sft
from tests.tiny import LEARNED_POSITIONS, Rows, policy, row, shallow, trainer

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = [row(seed=seed) for seed in range(6)]
ADAMW = partial(AdamW, lr=1e-2, weight_decay=0.1)
QUERY = "model.layers.0.self_attn.q_proj.weight"


def fit(module: SFTModule, *callbacks: Callback, rows: Any = ROWS, ckpt_path: Any = None, **options: Any) -> Trainer:
    run = trainer(**({"max_epochs": 1, "callbacks": list(callbacks)} | options))
    run.fit(module, Rows(rows), ckpt_path=ckpt_path)
    return run


def weights(module: SFTModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.policy_model.causal_lm.named_parameters()}


def assert_equal(one: SFTModule, other: SFTModule) -> None:
    expected = weights(other)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(one).items())


# --- masks


@pytest.mark.parametrize(
    ("shape", "sparsity", "kept"),
    [((3, 5), 0.75, 3), ((64, 64), 0.75, 1024), ((2, 5), 0.9, 1), ((7, 3), 0.0, 21), ((4, 8), 0.5, 16)],
)  # 0.9 of ten in floats: (1 - 0.9) * 10 is below 1, and would keep none
def test_a_mask_keeps_the_exact_share_rounded_down(shape: tuple[int, int], sparsity: float, kept: int) -> None:
    assert int(random_mask("a", torch.Size(shape), sparsity, 0).sum()) == kept


def test_a_mask_follows_from_seed_and_name_alone() -> None:
    shape = torch.Size((16, 16))
    mask = random_mask("a", shape, 0.5, 3)
    torch.manual_seed(9)
    assert torch.equal(random_mask("a", shape, 0.5, 3), mask)
    assert not torch.equal(random_mask("b", shape, 0.5, 3), mask)
    assert not torch.equal(random_mask("a", shape, 0.5, 4), mask)


def test_every_weight_is_as_likely_to_stay() -> None:
    shape, draws = torch.Size((4, 4)), 4000
    kept = torch.stack([random_mask("a", shape, 0.75, seed) for seed in range(draws)]).double().mean(0)
    assert ((kept - 0.25).abs() < 5 * (0.25 * 0.75 / draws) ** 0.5).all()  # five standard errors


def test_only_linear_layers_of_decoder_layers_are_pruned(tokenizer: TokenizerSpec) -> None:
    module = sft.module(tokenizer)
    fit(module, StaticSparsity(0.75))
    linear = {f"layers.0.{name}_proj" for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o")}
    linear |= {f"layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")}
    for name, weight in weights(module).items():
        share = 0.75 if name.removeprefix("model.").removesuffix(".weight") in linear else 0.0
        assert (weight == 0).double().mean() == share, name


def test_linear_layers_of_gpt2_are_pruned_and_its_embeddings_are_not() -> None:
    names = [name for name, _ in prunable(policy(**LEARNED_POSITIONS).causal_lm)]
    layer = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert names == [f"transformer.h.{number}.{name}.weight" for number in (0, 1) for name in layer]


# --- training


class Given(SFTModule):
    """The loss is 0.5 of a weight that stays and 0.7 of one that is masked: so are the gradients."""

    def places(self) -> tuple[Tensor, Tensor, Tensor]:
        weight = self.policy_model.causal_lm.get_parameter(QUERY)
        mask = random_mask(QUERY, weight.shape, 0.75, 0)
        return weight, mask.nonzero()[0], mask.logical_not().nonzero()[0]

    def compute_loss(self, batch: PackedBatch) -> LossOutput:
        weight, kept, masked = self.places()
        return LossOutput(0.5 * weight[*kept] + 0.7 * weight[*masked], torch.tensor(1), {})

    def values(self) -> list[float]:
        weight, kept, masked = self.places()
        return [weight[*kept].item(), weight[*masked].item()]


@pytest.fixture
def given(tokenizer: TokenizerSpec) -> Given:
    module = Given(PolicySpec(config=shallow()), tokenizer=tokenizer, optimizer=partial(SGD, lr=0.1))
    module.configure_model()
    weight, kept, masked = module.places()
    with torch.no_grad():
        weight[*kept], weight[*masked] = 1.0, 3.0
    return module


def test_a_masked_weight_stays_zero_and_a_dense_step_revives_it(given: Given) -> None:
    fit(given, StaticSparsity(0.75), max_steps=1)
    assert given.values() == pytest.approx([0.95, 0.0])  # 1 - 0.1 * 0.5
    fit(given, max_steps=1)
    assert given.values() == pytest.approx([0.90, -0.07])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_masked_gradient_that_is_no_number_does_not_survive(given: Given, bad: float) -> None:
    weight, _, masked = given.places()
    place = torch.zeros_like(weight, dtype=torch.bool)
    place[*masked] = True
    weight.register_hook(lambda gradient: gradient.masked_fill(place, bad))  # type: ignore[no-untyped-call]
    run = fit(given, StaticSparsity(0.75), max_steps=1, gradient_clip_val=0.2)
    assert run.callback_metrics["train/grad_norm"].item() == pytest.approx(0.5)  # of what is left
    assert given.values() == pytest.approx([0.98, 0.0], abs=1e-5)  # clipped to 0.2


@pytest.mark.parametrize("optimizer", [ADAMW, partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.1)])
def test_an_optimizer_with_momentum_and_decay_leaves_masked_weights_at_zero(
    tokenizer: TokenizerSpec, optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, sparse = sft.module(tokenizer, optimizer=optimizer), StaticSparsity(0.75)
    monkeypatch.setattr(sparse, "on_train_batch_end", Callback().on_train_batch_end)  # by itself
    fit(module, sparse)
    assert (weights(module)[QUERY] == 0).double().mean() == 0.75


def test_no_sparsity_changes_no_bit(tokenizer: TokenizerSpec) -> None:
    plain, zero = sft.module(tokenizer, optimizer=ADAMW), sft.module(tokenizer, optimizer=ADAMW)
    fit(plain)
    fit(zero, StaticSparsity(0.0))
    assert_equal(zero, plain)


# --- checkpoints and stages


def saver(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")


def test_a_resumed_run_ends_equal(tokenizer: TokenizerSpec, tmp_path: Path) -> None:
    whole = sft.module(tokenizer, optimizer=ADAMW)
    fit(whole, StaticSparsity(0.75), saver(tmp_path), enable_checkpointing=True, accumulate_grad_batches=2)
    saved = torch.load(tmp_path / "step=2.ckpt", weights_only=True)
    assert saved["callbacks"]["StaticSparsity"].keys() == {"sparsity", "seed", "digest"}
    assert saved["state_dict"].keys() == sft.module(tokenizer).state_dict().keys()
    resumed = sft.module(tokenizer, optimizer=ADAMW)
    torch.nn.init.ones_(resumed.policy_model.causal_lm.get_parameter(QUERY))
    left = Rows(ROWS[4:])  # these rows know nothing of where they are
    run = trainer(max_steps=3, callbacks=[StaticSparsity(0.75)], accumulate_grad_batches=2)
    run.fit(resumed, left, ckpt_path=tmp_path / "step=2.ckpt")
    assert run.global_step == 3
    assert_equal(resumed, whole)


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([StaticSparsity(0.75, seed=1)], "was written with sparsity 0.75, seed 0, digest .*, and .* has sparsity 0.75"),
        ([StaticSparsity(0.5)], "and StaticSparsity has sparsity 0.5, seed 0"),
    ],
)
def test_a_run_keeps_its_masks(
    tokenizer: TokenizerSpec, tmp_path: Path, callbacks: list[Callback], message: str
) -> None:
    fit(sft.module(tokenizer), StaticSparsity(0.75), saver(tmp_path), max_steps=1, enable_checkpointing=True)
    with pytest.raises(ValueError, match=message):
        fit(sft.module(tokenizer), *callbacks, ckpt_path=tmp_path / "step=1.ckpt")


def test_a_dense_run_does_not_go_on_sparse(tokenizer: TokenizerSpec, tmp_path: Path) -> None:
    fit(sft.module(tokenizer), saver(tmp_path), max_steps=1, enable_checkpointing=True)
    with pytest.raises(ValueError, match="was written with no such callback"):
        fit(sft.module(tokenizer), StaticSparsity(0.75), ckpt_path=tmp_path / "step=1.ckpt")


def test_other_masks_for_the_same_settings_are_found_by_their_digest(
    tokenizer: TokenizerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(sft.module(tokenizer), StaticSparsity(0.75), saver(tmp_path), max_steps=1, enable_checkpointing=True)
    place = "lion_lightning.experimental.static_sparsity.random_mask"
    monkeypatch.setattr(place, lambda name, shape, *_: random_mask(name, shape, 0.75, 1))  # as another torch might draw
    with pytest.raises(ValueError, match="version of torch"):
        fit(sft.module(tokenizer), StaticSparsity(0.75), ckpt_path=tmp_path / "step=1.ckpt")


def test_the_next_stage_is_dense_or_keeps_the_mask(tokenizer: TokenizerSpec, tmp_path: Path) -> None:
    sparse = sft.module(tokenizer, optimizer=ADAMW)
    fit(sparse, StaticSparsity(0.75))
    zeros = weights(sparse)[QUERY] == 0
    sparse.policy_model.causal_lm.save_pretrained(tmp_path)
    dense = SFTModule(PolicySpec(str(tmp_path)), tokenizer=tokenizer, optimizer=ADAMW)
    fit(dense)
    assert not (weights(dense)[QUERY] == 0).any()
    kept = SFTModule(PolicySpec(str(tmp_path)), tokenizer=tokenizer, optimizer=ADAMW)
    fit(kept, StaticSparsity(0.75, allow_pretrained=True))
    assert torch.equal(weights(kept)[QUERY] == 0, zeros)


# --- refusals


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(sparsity: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        StaticSparsity(sparsity)


def test_a_share_that_leaves_no_weight_of_a_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sparsity 0\.95 leaves none of the 10 weights of a, so that .*; lower it"):
        random_mask("a", torch.Size([2, 5]), 0.95, 0)


def test_loaded_weights_and_adapters_are_refused(tokenizer: TokenizerSpec) -> None:
    loaded = SFTModule("some/model", tokenizer=tokenizer)
    with pytest.raises(MisconfigurationException, match="75% of the weights of some/model to zero at random"):
        fit(loaded, StaticSparsity(0.75))
    adapted = SFTModule(PolicySpec(config=shallow(), lora=LoRASpec(r=2)), tokenizer=tokenizer)
    with pytest.raises(MisconfigurationException, match=r"policy\.lora trains adapters"):
        fit(adapted, StaticSparsity(0.75))


def test_gradients_that_are_not_kept_are_refused(tokenizer: TokenizerSpec) -> None:
    with pytest.raises(MisconfigurationException, match="FusedBackward leaves none until then"):
        fit(sft.module(tokenizer), FusedBackward(), StaticSparsity(0.75))


def test_flattened_weights_are_refused(tokenizer: TokenizerSpec) -> None:
    run: Any = SimpleNamespace(strategy=FSDPStrategy(), callbacks=[])
    with pytest.raises(MisconfigurationException, match="FSDPStrategy flattens weights"):
        StaticSparsity(0.75).setup(run, sft.module(tokenizer), "fit")


def test_a_module_without_a_policy_is_refused() -> None:
    class Foreign(LightningModule):
        pass

    with pytest.raises(MisconfigurationException, match="and Foreign is none"):
        StaticSparsity(0.5).setup(trainer(), Foreign(), "fit")


def test_models_without_decoder_layers_or_with_experts_are_refused() -> None:
    model = policy(**LEARNED_POSITIONS).causal_lm
    model.transformer.h = nn.ModuleList()
    with pytest.raises(MisconfigurationException, match="the code of GPT2LMHeadModel marks none"):
        [*prunable(model)]
    with pytest.raises(MisconfigurationException, match=r"layers\.0\.mlp\.experts keeps its experts in stacks"):
        [*prunable(policy("mixtral", num_local_experts=4, num_experts_per_tok=2).causal_lm)]


# --- FLOPs


@pytest.mark.parametrize(
    ("layers", "hidden", "sparsity", "factor"),
    [(24, 2048, 0.5, 1.665), (24, 2048, 0.75, 2.494), (12, 768, 0.5, 1.357), (12, 768, 0.75, 1.653)],
)
def test_flops_are_those_of_the_paper(layers: int, hidden: int, sparsity: float, factor: float) -> None:
    flops = partial(forward_flops_per_token, layers, hidden, 2048, 50257)
    assert flops() / flops(sparsity) == pytest.approx(factor, abs=5e-4)


def test_flops_of_gpt3_xl_by_hand() -> None:
    # 2 * 12 * 24 * 2048^2 + 4 * 24 * 2048 * 2048 + 2 * 2048 * 50257
    assert forward_flops_per_token(24, 2048, 2048, 50257) == 2_415_919_104 + 402_653_184 + 205_852_672
    assert forward_flops_per_token(1, 8, 4, 10, 0.5, matrices=100) == 100 + 128 + 160
