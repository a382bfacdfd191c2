"""Steps within the backward pass give the weights, metrics and checkpoints of steps after it, without its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer

from lion_lightning.callbacks import FusedBackward
from lion_lightning.callbacks.optimization.fused_gradients import FusedGradients, require_stepped_alone
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules import CosineWithWarmup, DPOModule, SFTModule
from lion_lightning.modules.optimization.gradients import StepGradients
from lion_lightning.ops.logprobs import LOGITS_PER_TILE
from lion_lightning.optim import AdaLomo
from lion_lightning.strategies import FSDP2Strategy
from lion_lightning.types import Sample, SampleSegment
from tests.distributed.fsdp1 import FSDPOnCPU
from tests.marks import exhaustive
from tests.tiny import VOCABULARY, Rows, pairs, row, shallow, trainer

pytestmark = pytest.mark.filterwarnings("ignore")

# Steps of 21, 7 and 14 targets, and one of none.
ROWS = [row(seed=seed, supervised=range(25 - 7 * seed, 25) if seed else None) for seed in range(3)]
ROWS.append(ROWS[0].without_targets())

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": partial(SGD, lr=0.1),
    "momentum": partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": partial(AdamW, lr=0.01, weight_decay=0.1),
    "adalomo": partial(AdaLomo, lr=0.05, weight_decay=0.1),
}
MOE = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
CASES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd"},
    "sgd, clipped": {"optimizer": "sgd", "clip": 0.5},
    "momentum, tied, clipped": {"optimizer": "momentum", "shape": {"tie_word_embeddings": True}, "clip": 0.5},
    "adamw": {"optimizer": "adamw"},
    "adamw, recomputed, clipped": {"optimizer": "adamw", "spec": {"recompute": "full"}, "clip": 0.5},
    "adamw, a head in tiles": {"optimizer": "adamw", "tile": 240, "clip": 0.5},
    "adalomo": {"optimizer": "adalomo"},
    "adalomo, lora": {"optimizer": "adalomo", "spec": {"lora": LoRASpec(r=2)}, "clip": 0.5},
    "sgd, experts balanced": {"optimizer": "sgd", "shape": MOE, "options": {"router_aux_loss_coef": 0.1}},
}


def module(
    tokenizer: TokenizerSpec, optimizer: Any = "sgd", shape: Any = None, spec: Any = None, options: Any = None
) -> SFTModule:
    torch.manual_seed(0)
    made = SFTModule(
        PolicySpec(config=shallow(**(shape or {})), **(spec or {})),
        tokenizer=tokenizer,
        optimizer=OPTIMIZERS.get(optimizer, optimizer),
        lr_scheduler=CosineWithWarmup,
        **(options or {}),
    )
    made.configure_model()
    return made


class Log(Callback):
    """Keeps the metrics of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.steps.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def fit(made: Any, *callbacks: Callback, rows: Any = ROWS, **options: Any) -> list[dict[str, float]]:
    log = Log()
    trainer(max_epochs=2, callbacks=[log, *callbacks], **options).fit(made, Rows(rows))
    return log.steps


def assert_close(found: nn.Module, expected: nn.Module) -> None:
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", CASES)
def test_it_trains_as_steps_after_the_backward_pass_do(
    name: str, tokenizer: TokenizerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = dict(CASES[name])
    if tile := case.pop("tile", None):  # of 24 targets: parts of the vocabulary, of which two are kept
        monkeypatch.setitem(LOGITS_PER_TILE, "cpu", tile)
        monkeypatch.setattr("lion_lightning.ops.logprobs.LOGITS_KEPT", 2 * tile)
    clip = case.pop("clip", None)
    plain, fused = module(tokenizer, **case), module(tokenizer, **case)
    start = {name: p.detach().clone() for name, p in fused.named_parameters()}
    expected = fit(plain, gradient_clip_val=clip)
    found = fit(fused, FusedBackward(clip_norm=clip))
    assert len(found) == len(expected) == 2 * len(ROWS)
    for step, other in zip(found, expected, strict=True):
        assert step == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert_close(fused, plain)
    assert all((p != start[name]).any() for name, p in fused.named_parameters() if p.requires_grad)
    assert all(torch.equal(p, start[name]) for name, p in fused.named_parameters() if not p.requires_grad)


def test_weights_in_fp64_too(tokenizer: TokenizerSpec) -> None:
    plain, fused = module(tokenizer), module(tokenizer)
    expected = fit(plain, gradient_clip_val=0.5, precision="64-true")
    found = fit(fused, FusedBackward(clip_norm=0.5), precision="64-true")
    assert found[-1] == pytest.approx(expected[-1], rel=1e-5)
    assert_close(fused, plain)


def test_preference_pairs_too(tokenizer: TokenizerSpec) -> None:
    def made() -> DPOModule:
        torch.manual_seed(0)
        built = DPOModule(PolicySpec(config=shallow()), tokenizer=tokenizer, optimizer=OPTIMIZERS["sgd"])
        built.configure_model()
        return built

    plain, fused = made(), made()
    rows = [pairs((5, 4, 6), (3, 2, 2), seed=seed) for seed in range(2)]
    expected = fit(plain, rows=rows, gradient_clip_val=0.1)
    found = fit(fused, FusedBackward(clip_norm=0.1), rows=rows)
    assert found[-1] == pytest.approx(expected[-1], rel=1e-4, abs=1e-5)
    assert_close(fused, plain)


# --- one parameter of which the gradient is known

START = torch.tensor([3.0, 4.0])
"""Of the loss ``|p|**2 / 2``, whose gradient is ``p``, of norm 5."""


def stepped(start: Tensor, scale: float = 1.0, **clip: float | None) -> tuple[Tensor, float]:
    """A parameter after a step of SGD with rate 0.1, and the norm that is logged."""
    parameter = nn.Parameter(start.clone())
    clips = {"clip_norm": None, "clip_value": None, **clip}
    strategy = SingleDeviceStrategy()
    gradients = FusedGradients(SGD([parameter], lr=0.1), strategy, **clips)
    gradients.backward(parameter.square().sum() / 2, lambda: scale)
    assert parameter.grad is None
    return parameter.detach(), gradients.norm(parameter, strategy).item()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        ({}, [2.7, 3.6]),
        ({"clip_norm": 1.0}, [2.94, 3.92]),  # the gradient becomes (0.6, 0.8)
        ({"clip_norm": 10.0}, [2.7, 3.6]),
        ({"clip_value": 3.5}, [2.7, 3.65]),
        ({"clip_value": 3.5, "clip_norm": 1.0}, [2.94, 3.93]),  # (3, 3.5) / 5, the norm of the gradient as it was
    ],
)
def test_a_step_by_hand(clip: dict[str, float], expected: list[float]) -> None:
    after, norm = stepped(START, **clip)
    assert after.tolist() == pytest.approx(expected, abs=1e-5)
    assert norm == pytest.approx(5.0)


def test_clipping_values_changes_the_direction() -> None:
    after, _ = stepped(torch.tensor([1.3, 0.8]), clip_value=1.0)
    assert after.tolist() == pytest.approx([1.3 - 0.1, 0.8 - 0.08])


def test_the_loss_is_scaled_before_the_backward_pass() -> None:
    after, norm = stepped(START, scale=0.5)
    assert after.tolist() == pytest.approx([2.85, 3.8])
    assert norm == pytest.approx(2.5)


# --- what is there when


def test_one_gradient_is_alive_at_a_time(tokenizer: TokenizerSpec) -> None:
    made, alive = module(tokenizer, shape={"num_hidden_layers": 2}), []
    parameters = [*made.parameters()]

    def count(_: Any) -> None:
        alive.append(sum(p.grad.numel() for p in parameters if p.grad is not None))

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(count)  # type: ignore[no-untyped-call]
    fit(made, FusedBackward(), rows=ROWS[:1])
    assert max(alive) == 101 * 32  # the embedding, or the head
    assert sum(p.numel() for p in parameters) == 21_984
    alive.clear()
    fit(made, rows=ROWS[:1])  # the callback has left nothing behind
    assert max(alive) == 21_984
    assert type(made.gradients) is StepGradients


def test_a_run_that_fails_leaves_the_module_as_it_was(tokenizer: TokenizerSpec) -> None:
    class Fails(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise KeyError

    made = module(tokenizer)
    with pytest.raises(KeyError):
        fit(made, FusedBackward(), Fails())
    assert type(made.gradients) is StepGradients
    assert not any(p._post_accumulate_grad_hooks for p in made.parameters())


def test_a_loss_that_is_no_number_changes_nothing(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer)
    with torch.no_grad():
        made.policy_model.causal_lm.model.norm.weight[0] = math.nan
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    with pytest.raises(ValueError, match=r"train/loss is nan in step 1 .* NaN or infinite before any step"):
        fit(made, FusedBackward())
    assert all(torch.equal(p.nan_to_num(), before[name].nan_to_num()) for name, p in made.named_parameters())


# --- checkpoints

EPOCH = 4
LENGTHS = np.full(8, 8)
SAMPLES = [
    Sample((SampleSegment(rng.integers(3, VOCABULARY, 8).astype(np.int32), np.full(8, True)),), number)
    for number, rng in enumerate(map(np.random.default_rng, range(8)))
]


class Kill(Callback):
    """Stops a run before its third batch of the second epoch, with nothing saved after the last step."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == EPOCH + 2:
            raise KeyError


def state(run: Trainer) -> dict[str, Tensor]:
    """Weights, and the optimizer's state."""
    found = dict(run.lightning_module.state_dict())
    for number, entries in run.optimizers[0].state_dict()["state"].items():
        found |= {f"{name} of {number}": torch.as_tensor(value) for name, value in entries.items() if value is not None}
    return found


@pytest.mark.parametrize("optimizer", ["adalomo", *exhaustive("momentum", "adamw")])
def test_a_run_killed_within_an_epoch_ends_equal_to_the_bit(
    optimizer: str, tokenizer: TokenizerSpec, tmp_path: Path
) -> None:
    def run(folder: str, *callbacks: Callback) -> Trainer:
        saver = ModelCheckpoint(tmp_path / folder, every_n_train_steps=1, save_last=True)
        loader: Any = PackedLoader(SAMPLES, LENGTHS, capacity=8, batch_size=2, shuffle=True, seed=5)
        options: dict[str, Any] = {"max_epochs": 3, "enable_checkpointing": True}
        made = trainer(callbacks=[saver, FusedBackward(clip_norm=0.5), *callbacks], **options)
        made.fit(module(tokenizer, optimizer), loader, ckpt_path="last")
        return made

    whole = run("whole")
    with pytest.raises(KeyError):
        run("killed", Kill())
    resumed = run("killed")
    assert resumed.global_step == whole.global_step == 3 * EPOCH
    mine, other = state(resumed), state(whole)
    assert mine.keys() == other.keys()
    assert [name for name in mine if not torch.equal(mine[name], other[name])] == []


def test_a_checkpoint_has_the_state_that_it_has_without(tokenizer: TokenizerSpec, tmp_path: Path) -> None:
    saved = []
    for callbacks in ([FusedBackward()], []):
        run = trainer(max_epochs=1, callbacks=callbacks)
        run.fit(module(tokenizer, "adamw"), Rows(ROWS))
        run.save_checkpoint(tmp_path / "made.ckpt")
        saved.append(torch.load(tmp_path / "made.ckpt", weights_only=True)["optimizer_states"][0])
    fused, plain = saved
    assert fused["param_groups"] == plain["param_groups"]
    assert fused["state"].keys() == plain["state"].keys()
    for number, entries in plain["state"].items():
        assert fused["state"][number].keys() == entries.keys()
        assert fused["state"][number]["step"] == entries["step"] == len(ROWS)


# --- refusals


class CountsInTheGroup(SGD):
    """As apex's optimizers do."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
        return super().step(closure)


class Manual(SFTModule):
    """Steps by itself, by two optimizers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False


HALF = MixedPrecision("16-mixed", "cpu")


def scheduled() -> GradientAccumulationScheduler:
    return GradientAccumulationScheduler({0: 1, 3: 4})


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "accumulation": ("accumulate_grad_batches is 2, and gradients that are let go", {"accumulate_grad_batches": 2}, {}),
    "accumulation later": ("accumulate_grad_batches is 4", {"callbacks": [FusedBackward(), scheduled()]}, {}),
    "clipping": ("gradient_clip_val is 0.5, and the trainer finds no", {"gradient_clip_val": 0.5}, {}),
    "fp16": ("under trainer.precision: 16-mixed a step whose gradient overflows", {"plugins": HALF}, {}),
    "twice": ("FusedBackward is twice in trainer.callbacks", {"callbacks": [FusedBackward(), FusedBackward()]}, {}),
    "rows": ("policy.trainable_rows masks the gradient after", {}, {"spec": {"trainable_rows": [3, 4]}}),
    "counts": ("CountsInTheGroup changes step of its parameter group", {}, {"optimizer": CountsInTheGroup}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_stepped_so_is_refused(name: str, tokenizer: TokenizerSpec) -> None:
    said, options, made = REFUSED[name]
    with pytest.raises(MisconfigurationException) as error:
        trainer(max_epochs=1, **({"callbacks": [FusedBackward()]} | options)).fit(module(tokenizer, **made), Rows(ROWS))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_strategies_that_sum_gradients_later_are_refused(tokenizer: TokenizerSpec) -> None:
    for strategy, name in (("ddp", "DDPStrategy"), (FSDPOnCPU(), "FSDPOnCPU")):
        run = trainer(strategy=strategy, devices=2)
        with pytest.raises(MisconfigurationException, match=f"under {name} a gradient is not yet summed over the rank"):
            FusedBackward().setup(run, module(tokenizer), "fit")


def test_tensor_parallelism_is_refused(tokenizer: TokenizerSpec) -> None:
    strategy = FSDP2Strategy()
    strategy._device_mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 2)}  # type: ignore[assignment]
    with pytest.raises(MisconfigurationException, match="tensor_parallel_size is 2, which it does not know"):
        FusedBackward().setup(trainer(strategy=strategy, devices=2), module(tokenizer), "fit")


def test_an_optimizer_that_needs_a_closure_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"LBFGS cannot step one parameter alone \(.*closure"):
        require_stepped_alone(LBFGS([nn.Parameter(torch.ones(2))]))


def test_other_modules_are_refused(tokenizer: TokenizerSpec) -> None:
    manual = Manual(PolicySpec(config=shallow()), tokenizer=tokenizer)
    for other in (BoringModel(), manual):
        run = trainer(max_epochs=1, callbacks=[FusedBackward()])
        with pytest.raises(MisconfigurationException, match=f"{type(other).__name__} is no AlignmentModule"):
            run.fit(other, Rows(ROWS))


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["clip_norm", "clip_value"])
def test_a_limit_is_above_zero(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"FusedBackward\.{name} is {value}; give a number above 0"):
        FusedBackward(**{name: value})


@pytest.mark.parametrize("kind", [SGD, AdamW, AdaLomo, torch.optim.RAdam, torch.optim.Adafactor, torch.optim.NAdam])
def test_optimizers_that_keep_their_state_by_parameter_pass_and_are_left_alone(kind: Any) -> None:
    parameters = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(2))]
    optimizer = kind(parameters, lr=0.1)
    require_stepped_alone(optimizer)
    assert not optimizer.state
    assert optimizer.param_groups[0]["params"] == parameters
    assert all(torch.equal(parameter, torch.ones_like(parameter)) for parameter in parameters)
