"""Whole training steps on a device that is not the CPU: no tensor left behind, and no wait but those listed here."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.optim import AdamW

from lion_lightning import (
    DPOModule,
    GroupModule,
    KTOModule,
    LoRASpec,
    OnlineDPOModule,
    PolicyGradientModule,
    PolicySpec,
    SFTModule,
    TokenizerSpec,
)
from lion_lightning.losses import (
    BCOLoss,
    BCOPairLoss,
    DAPOLoss,
    GRPOLoss,
    GSPOLoss,
    KTOLoss,
    LambdaLoss,
    PlackettLuceLoss,
    RLOOLoss,
    SigmoidLoss,
    SimPOLoss,
    UnlikelihoodLoss,
)
from lion_lightning.models.embeddings import TrainableRows
from lion_lightning.models.packing.hidden_states import backbone_output
from lion_lightning.models.policy import PolicyModel
from lion_lightning.modules.optimization.metrics import StepMetrics
from lion_lightning.ops.logprobs import pair_logps
from lion_lightning.planning.meta_model import meta_model
from lion_lightning.references.base import AdapterOffReference, FrozenReference, MixedReference, NoReference
from lion_lightning.references.cached import CachedReference, OldPolicy
from lion_lightning.references.store import AnswerStore, answer_counts, answer_keys
from lion_lightning.types import PackedBatch, TokenLogps, keep_answers
from tests.accelerator import fake_accelerator, move, no_blocking_copies
from tests.tiny import pairs, row, trees
from tests.tiny import shallow as config

WAITS = {
    (StepMetrics, "as_floats"): "one wait per step, after all of it was launched: the divisor of the gradients, and a "
    "loss that is not finite ends the run before the weights are updated",
}
"""Functions that wait for the device within a training step, and why."""

ATTENTION = ("lion_sdpa", "lion_dense", "lion_varlen")
ADAMW = {"fused": {"fused": True}, "foreach": {"foreach": True}}


class Unchecked(PolicyModel):
    """A policy whose values nobody can look at."""

    def probe(self) -> None:
        """Nothing: a Llama has the usual backbone."""
        self._hidden = backbone_output


def batches() -> tuple[PackedBatch, PackedBatch]:
    """Documents and pairs, made on the CPU with values, as loaders make them."""
    return row(), pairs((6, 5, 3), (4, 7, 9))


def policy(spec: PolicySpec, device: torch.device) -> PolicyModel:
    model: Any = meta_model(spec)
    for part in model.modules():  # `meta_model` replaces variable-length kernels, which this device has as CUDA has
        if hasattr(part, "config"):
            part.config._attn_implementation = spec.attention
    return Unchecked(move(model, device)).train()


@pytest.fixture
def listed_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in WAITS:
        monkeypatch.setattr(owner, name, lambda *_: (2.0, 1.0))
    # A number of the CPU, which FakeTensorMode does not know either: the count of AdamW's steps.
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_get_value", lambda value: 1.0)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As much of a Trainer as a step asks for, and Lightning's order of a step."""
    strategy = SimpleNamespace(reduce=lambda tensor, **_: tensor, distributed_sampler_kwargs=None)
    made = SimpleNamespace(strategy=strategy, accumulate_grad_batches=1, precision_plugin=None, global_step=0)

    def optimizer_step(self: Any, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
        closure()
        self.on_before_optimizer_step(optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0, foreach=True)
        optimizer.step()

    monkeypatch.setattr(LightningModule, "optimizer_step", optimizer_step)
    monkeypatch.setattr(LightningModule, "log", lambda self, name, value, **options: None)
    monkeypatch.setattr(LightningModule, "trainer", made)
    monkeypatch.setattr(LightningModule, "global_step", 0)
    return made


def step(
    module: Any,
    batch: PackedBatch,
    spec: PolicySpec,
    autocast: bool = False,
    optimizer: Any = None,
    steps: int = 1,
) -> None:
    """Optimizer steps, from the batch's way to the device to the update; from the second the optimizer has state."""
    with fake_accelerator() as device:
        module.policy = policy(spec, device)
        reference = getattr(module, "reference", None)
        if isinstance(reference, FrozenReference):
            reference.model = policy(spec, device).requires_grad_(False).eval()
        if spec.trainable_rows is not None:
            module._trainable_rows = TrainableRows(module.policy.causal_lm, [3, 5])
            module._trainable_rows._mask = torch.zeros(101, 1, device=device)  # made once per run
        module._dims = {name: parameter.dim() for name, parameter in module.named_parameters()}
        move_loss(module, device)
        made = AdamW(module.parameter_groups(), lr=1e-3, **(optimizer or {"fused": True}))
        with no_blocking_copies():
            for _ in range(steps):
                moved = fake(batch, device)

                def closure(moved: PackedBatch = moved) -> None:
                    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                        loss = module.training_step(moved, 0)
                    torch.autograd.backward(loss)

                module.optimizer_step(0, 0, made, closure)
        trained = [parameter for parameter in module.policy.parameters() if parameter.requires_grad]
        assert all(parameter.device.type == device.type for parameter in trained)


def fake(batch: PackedBatch, device: torch.device) -> PackedBatch:
    """A batch as it arrives on the device; its copy on the CPU keeps its values."""
    on_host = batch._map(lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))
    moved = on_host.to(device)
    moved._cpu_copy = batch
    return moved


def move_loss(module: Any, device: torch.device) -> None:
    """What a loss counts over the run."""
    loss = getattr(module, "loss", None)
    for part in [] if loss is None else loss.modules():
        for name, value in list(vars(part).items()) + list(part._buffers.items()):
            if isinstance(value, torch.Tensor):
                setattr(part, name, torch.zeros(value.shape, dtype=value.dtype, device=device))


@pytest.mark.parametrize("recompute", ["none", "elementwise", "full"])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16-mixed"])
def test_a_step_of_sft(trainer: Any, listed_waits: None, autocast: bool, recompute: Any) -> None:
    spec = PolicySpec(config=config(), recompute=recompute)
    step(SFTModule(spec, tokenizer=TokenizerSpec("none")), batches()[0], spec, autocast)


def test_a_step_of_sft_with_weights(trainer: Any, listed_waits: None) -> None:
    documents, spec = batches()[0], PolicySpec(config=config())
    weighted = replace(documents, target_weights=torch.linspace(0.1, 2, len(documents.targets)))
    step(SFTModule(spec, tokenizer=TokenizerSpec("none")), weighted, spec)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16-mixed"])
def test_a_step_of_dpo(trainer: Any, listed_waits: None, attention: str, autocast: bool) -> None:
    spec = PolicySpec(config=config(), attention=attention)
    step(DPOModule(spec, tokenizer=TokenizerSpec("none"), reference=FrozenReference()), batches()[1], spec, autocast)


@pytest.mark.parametrize("recompute", ["none", "elementwise", "full"])
def test_a_step_of_adapters_against_the_base_model(trainer: Any, listed_waits: None, recompute: Any) -> None:
    spec = PolicySpec(config=config(), lora=LoRASpec(r=4), recompute=recompute)
    step(DPOModule(spec, tokenizer=TokenizerSpec("none"), reference=AdapterOffReference()), batches()[1], spec)


@pytest.mark.parametrize("optimizer", ADAMW)
@pytest.mark.parametrize("rows", [None, "new"])
def test_adamw_and_trainable_rows(trainer: Any, listed_waits: None, optimizer: str, rows: Any) -> None:
    spec = PolicySpec(config=config(), trainable_rows=rows)
    step(SFTModule(spec, tokenizer=TokenizerSpec("none")), batches()[0], spec, optimizer=ADAMW[optimizer], steps=2)


@pytest.mark.parametrize("loss", [SigmoidLoss(), SimPOLoss(), BCOPairLoss()], ids=lambda loss: type(loss).__name__)
def test_losses_that_need_a_reference_none_or_a_running_mean(trainer: Any, listed_waits: None, loss: Any) -> None:
    spec = PolicySpec(config=config())
    reference = MixedReference() if loss.needs_reference else NoReference()
    step(OnlineDPOModule(spec, tokenizer=TokenizerSpec("none"), loss=loss, reference=reference), batches()[1], spec)


NONE = float("nan")


def kept(batch: PackedBatch, positions: Any) -> PackedBatch:
    """Some answers of a batch, which are picked on the host."""
    with unset_fake_temporarily():
        smaller = keep_answers(batch.on_cpu(), positions)
    return fake(smaller, batch.input_ids.device)


@pytest.mark.parametrize("loss", [KTOLoss(), BCOLoss(), UnlikelihoodLoss()], ids=lambda loss: type(loss).__name__)
def test_a_step_of_single_answers(trainer: Any, listed_waits: None, loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, batch = PolicySpec(config=config()), trees((5, (4, 7, 3), (1.0, 0.0, NONE)), (3, (6, 5), (1.0, NONE)))
    monkeypatch.setattr("lion_lightning.modules.kto.keep_answers", kept)
    reference = FrozenReference() if loss.needs_reference else NoReference()
    step(KTOModule(spec, tokenizer=TokenizerSpec("none"), loss=loss, reference=reference), batch, spec)


@pytest.mark.parametrize("loss", [PlackettLuceLoss(), LambdaLoss()], ids=lambda loss: type(loss).__name__)
def test_a_step_of_groups(trainer: Any, listed_waits: None, loss: Any) -> None:
    """By losses that do not wait, unlike ``AllPairsLoss``, which says so."""
    spec, batch = PolicySpec(config=config()), trees((5, (4, 7, 3), (1.0, 0.0, 0.5)), (3, (6, 5), (1.0, 0.3)))
    module = GroupModule(spec, tokenizer=TokenizerSpec("none"), loss=loss, reference=FrozenReference())
    step(module, batch, spec)


@pytest.mark.parametrize(
    "loss", [GRPOLoss(beta=0.1), DAPOLoss(), RLOOLoss(), GSPOLoss()], ids=lambda loss: type(loss).__name__
)
@pytest.mark.parametrize("old", [None, "those of the round"])
def test_a_step_of_policy_gradients(
    trainer: Any, listed_waits: None, loss: Any, old: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With groups of two sizes, the entropy, and where old log-probs are needed a policy that has sampled the round."""
    spec, batch = PolicySpec(config=config()), trees((5, (4, 7, 3), (1.0, 0.0, 0.5)), (3, (6, 5), (1.0, 0.0)))
    reference = FrozenReference() if loss.needs_reference else NoReference()
    module = PolicyGradientModule(spec, tokenizer=TokenizerSpec("none"), loss=loss, reference=reference)
    module.old.weights = old
    monkeypatch.setattr(OldPolicy, "forward", lambda self, batch, policy: torch.no_grad()(policy)(batch))
    step(module, batch, spec)


def test_a_step_against_cached_log_probs(trainer: Any, listed_waits: None, tmp_path: Path) -> None:
    spec, batch = PolicySpec(config=config()), batches()[1]
    store = AnswerStore(tmp_path, {})
    store.add(answer_keys(batch), answer_counts(batch), TokenLogps(torch.zeros(len(batch.targets))))
    store.flush()
    store.reload()
    reference = CachedReference(cache_dir=tmp_path)
    reference._store = store
    step(DPOModule(spec, tokenizer=TokenizerSpec("none"), reference=reference), batch, spec)


def test_the_scoring_of_references(listed_waits: None) -> None:
    spec, pairs = PolicySpec(config=config()), batches()[1]
    with fake_accelerator() as device, torch.no_grad(), no_blocking_copies():
        batch = fake(pairs, device)
        logps = pair_logps(policy(spec, device).eval()(batch), batch)
        assert logps.chosen.sums.device.type == device.type


@pytest.mark.parametrize(
    ("error", "read"),
    [
        ("DataDependentOutputException", lambda tensor: tensor.sum().item()),
        ("DynamicOutputShapeException", lambda tensor: tensor[tensor > 0]),
        ("DynamicOutputShapeException", torch.bincount),
        ("WaitError", lambda tensor: tensor.to("cpu")),
        ("WaitError", lambda tensor: torch.zeros(4).to(tensor.device)),
    ],
    ids=["item", "boolean index", "bincount", "to the CPU", "blocking copy"],
)
def test_a_wait_is_found(error: str, read: Any) -> None:
    with fake_accelerator() as device, no_blocking_copies():
        tensor = torch.zeros(4, dtype=torch.int64, device=device)
        with pytest.raises(Exception, match=r".*") as found:
            read(tensor)
    assert found.type.__name__ == error
