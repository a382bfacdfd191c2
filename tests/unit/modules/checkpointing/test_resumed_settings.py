"""A resume with other settings: each is refused by name, or used and said; none is written down and not used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR

from lion_lightning.losses import DFTLoss, HingeLoss, SigmoidLoss, WeightedSum
from lion_lightning.losses.pairs.reference_free import ChosenNLLLoss
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules import CosineWithWarmup, DPOModule, LinearWithWarmup, SFTModule
from lion_lightning.modules.checkpointing.resumed_settings import _shown, changes
from lion_lightning.references.base import FrozenReference, MixedReference
from tests.marks import slow_but
from tests.tiny import DOCUMENTS, Rows, pairs, row, shallow, trainer

ROWS = [row(*DOCUMENTS, seed=seed) for seed in range(6)]
PAIRS = [pairs((4, 3, 5), (2, 6, 4), seed=seed) for seed in range(6)]

Adam = partial(AdamW, lr=1e-2, weight_decay=0.1)
Cosine = partial(CosineWithWarmup, warmup=0)


Fit = Callable[..., Any]


@pytest.fixture
def fit(tokenizer: TokenizerSpec, tmp_path: Path) -> Fit:
    """Trains two steps and saves, or, with ``resume``, goes on from there to the third."""

    def fit(resume: bool = False, kind: Any = SFTModule, run: dict[str, Any] | None = None, **options: Any) -> Any:
        torch.manual_seed(0)
        given: dict[str, Any] = {"policy": PolicySpec(config=shallow()), "tokenizer": tokenizer, "optimizer": Adam}
        module = kind(**(given | options))
        made = trainer(**({"max_epochs": -1, "max_steps": 3 if resume else 2} | (run or {})))
        rows = PAIRS if issubclass(kind, DPOModule) else ROWS
        made.fit(module, Rows(rows), ckpt_path=tmp_path / "two.ckpt" if resume else None)
        if not resume:
            made.save_checkpoint(tmp_path / "two.ckpt")
        return made

    return fit


PLAIN: list[bytes] = []
"""The checkpoint of a first part without any options, which most of the tests below go on from."""


@pytest.fixture
def begin(fit: Fit, tmp_path: Path) -> Callable[[dict[str, Any]], None]:
    """Trains the first part with options; the one without any is trained once."""

    def begin(options: dict[str, Any]) -> None:
        if options or not PLAIN:
            fit(**options)
        if not options:
            PLAIN[:] = PLAIN or [(tmp_path / "two.ckpt").read_bytes()]
            (tmp_path / "two.ckpt").write_bytes(PLAIN[0])

    return begin


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.lightning_module.named_parameters()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("schedule", [None, Cosine], ids=["constant", "cosine"])
def test_the_optimizers_new_arguments_make_the_next_step(
    fit: Fit, schedule: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = fit(lr_scheduler=schedule)
    module, optimizer = first.lightning_module, first.optimizers[0]
    other = partial(AdamW, lr=3e-3, weight_decay=0.4, betas=(0.5, 0.9))
    resumed = fit(resume=True, optimizer=other, lr_scheduler=schedule)
    # By hand: the first run's weights and moments, and the new arguments. (A plain loader begins again at the first
    # row, with a warning.) At the third of three steps the cosine has fallen to (1 + cos(2 pi / 3)) / 2 = 1/4.
    peak = 3e-3 / 4 if schedule else 3e-3
    torch.autograd.backward(-module.policy_model(ROWS[0]).values.mean())
    for group, decay in zip(optimizer.param_groups, (0.4, 0.0), strict=True):
        group.update(lr=peak, weight_decay=decay, betas=(0.5, 0.9))
    optimizer.step()
    for name, expected in module.named_parameters():
        assert torch.allclose(weights(resumed)[name], expected, atol=1e-6), name
    assert "model.optimizer.lr was 0.01, is 0.003; model.optimizer.weight_decay was 0.1, is 0.4" in caplog.text
    assert "model.optimizer.betas.0 was 0.9, is 0.5" in caplog.text
    assert "group 1" not in caplog.text  # which has the same changes
    groups = resumed.optimizers[0].param_groups
    assert [(group.get("initial_lr", group["lr"]), group["weight_decay"]) for group in groups] == [
        (3e-3, 0.4),
        (3e-3, 0.0),
    ]


def lora(**options: Any) -> PolicySpec:
    return PolicySpec(config=shallow(), lora=LoRASpec(**options))


def policy(**options: Any) -> PolicySpec:
    return PolicySpec(config=shallow(), **options)


DPO = {"kind": DPOModule, "reference": FrozenReference()}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "optimizer": ({}, {"optimizer": partial(SGD, lr=0.1)}, r"model\.optimizer\.class_path was AdamW, is SGD;"),
    "state that was not kept": (
        {},
        {"optimizer": partial(AdamW, lr=0.01, amsgrad=True)},
        r"amsgrad was False, is True",
    ),
    "momentum that was not kept": (
        {"optimizer": partial(SGD, lr=0.01)},
        {"optimizer": partial(SGD, lr=0.01, momentum=0.9)},
        r"model\.optimizer\.momentum was 0, is 0\.9",
    ),
    "schedule": (
        {"lr_scheduler": Cosine},
        {"lr_scheduler": LinearWithWarmup},
        r"model\.lr_scheduler\.class_path was CosineWithWarmup, is LinearWithWarmup;",
    ),
    "no schedule": ({"lr_scheduler": Cosine}, {}, r"class_path was CosineWithWarmup, is nothing"),
    "loss": ({}, {"loss": DFTLoss()}, r"model\.loss\.class_path was NLLLoss, is DFTLoss;"),
    "part of a loss": (
        DPO | {"loss": WeightedSum([SigmoidLoss(), ChosenNLLLoss()])},
        DPO | {"loss": WeightedSum([HingeLoss(), ChosenNLLLoss()])},
        r"model\.loss\.parts\.0\.class_path was SigmoidLoss, is HingeLoss;",
    ),
    "reference": (DPO, DPO | {"reference": MixedReference()}, r"reference\.class_path was FrozenReference, is Mixed"),
    "reduction": ({}, {"reduction": "sum"}, r"model\.reduction was token_mean, is sum"),
    "size": (
        {},
        {"policy": PolicySpec(config=shallow(hidden_size=64))},
        r"model\.policy\.config\.hidden_size was 32, is 64;",
    ),
    "layers": ({}, {"policy": PolicySpec(config=shallow(num_hidden_layers=2))}, r"num_hidden_layers was 1, is 2"),
    "dtype": ({}, {"policy": policy(dtype="bfloat16")}, r"model\.policy\.dtype was float32, is bfloat16"),
    "lora": ({"policy": lora(r=2)}, {"policy": lora(r=4)}, r"model\.policy\.lora\.r was 2, is 4"),
    "alpha": ({"policy": lora(r=2)}, {"policy": lora(r=2, alpha=8)}, r"model\.policy\.lora\.alpha was 32\.0, is 8"),
    "no lora": ({"policy": lora(r=2)}, {}, r"model\.policy\.lora\.r was 2, is nothing"),
    "rows": ({}, {"policy": policy(trainable_rows=90)}, r"model\.policy\.trainable_rows was nothing, is 90"),
    "foreign schedule's rate": (
        {"lr_scheduler": partial(StepLR, step_size=1)},
        {"lr_scheduler": partial(StepLR, step_size=1), "optimizer": partial(AdamW, lr=1e-4, weight_decay=0.1)},
        r"model\.optimizer\.lr was 0\.01, is 0\.0001",
    ),
    "foreign schedule": (
        {"lr_scheduler": partial(StepLR, step_size=1, gamma=0.5)},
        {"lr_scheduler": partial(StepLR, step_size=1, gamma=0.1)},
        r"model\.lr_scheduler\.gamma was 0\.5, is 0\.1",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", slow_but(REFUSED, "optimizer", "schedule", "loss", "reference", "dtype", "lora"))
def test_what_the_checkpoints_state_is_made_of_stays(fit: Fit, begin: Callable[..., None], case: str) -> None:
    first, then, named = REFUSED[case]
    begin(first)
    with pytest.raises(ValueError, match=rf"^the checkpoint's state is of other settings: .*{named}") as error:
        fit(resume=True, **then)
    assert "\n" not in str(error.value)
    assert "lion export CHECKPOINT FOLDER" in str(error.value)


TAKEN: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "warmup": (
        {"lr_scheduler": Cosine},
        {"lr_scheduler": partial(CosineWithWarmup, warmup=2, minimum=0.5)},
        "model.lr_scheduler.minimum was 0.0, is 0.5; model.lr_scheduler.warmup was 0, is 2",
    ),
    "beta": (
        DPO | {"loss": SigmoidLoss(0.1)},
        DPO | {"loss": SigmoidLoss(0.5, label_smoothing=0.1)},
        "model.loss.beta was 0.1, is 0.5; model.loss.label_smoothing was 0.0, is 0.1",
    ),
    "weights": (
        DPO | {"loss": WeightedSum([SigmoidLoss(), ChosenNLLLoss()], [1.0, 1.0])},
        DPO | {"loss": WeightedSum([SigmoidLoss(), ChosenNLLLoss()], [1.0, 0.2])},
        "model.loss.weights.1 was 1.0, is 0.2",
    ),
    "clipping": ({}, {"run": {"gradient_clip_val": 1.0}}, "trainer.gradient_clip_val was nothing, is 1.0"),
    "accumulation": ({}, {"run": {"accumulate_grad_batches": 2}}, "trainer.accumulate_grad_batches was 1, is 2"),
    "accumulation by epoch": (
        {},
        {"run": {"callbacks": [GradientAccumulationScheduler({0: 2})]}},
        "callbacks.GradientAccumulationScheduler.class_path was nothing, is GradientAccumulationScheduler",
    ),
    "precision": ({}, {"run": {"precision": "bf16-mixed"}}, "trainer.precision was 32-true, is bf16-mixed"),
    "length": ({}, {}, "trainer.max_steps was 2, is 3"),
    "attention": ({}, {"policy": policy(attention="lion_dense")}, "model.policy.attention was lion, is lion_dense"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", slow_but(TAKEN, "warmup", "beta", "clipping", "length"))
def test_numbers_and_what_is_the_runs_own_are_taken_and_said(
    fit: Fit, begin: Callable[..., None], case: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, then, named = TAKEN[case]
    begin(first)
    run = fit(resume=True, **then)
    (said,) = [record.message for record in caplog.records if "other settings than the checkpoint's" in record.message]
    assert named in said
    assert run.global_step == 3


def test_a_resume_with_the_same_settings_says_nothing(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fit(lr_scheduler=Cosine, run={"max_steps": 3, "limit_train_batches": 2})
        fit(resume=True, lr_scheduler=Cosine, run={"max_steps": 3, "limit_train_batches": 2})
    assert "other settings" not in caplog.text


def test_the_patience_of_early_stopping_is_this_runs(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    """Lightning's callback takes it out of the checkpoint."""

    def stopping(patience: int) -> EarlyStopping:
        return EarlyStopping("train/loss", patience=patience, check_on_train_epoch_end=True)

    fit(run={"callbacks": [stopping(3)]})
    other = stopping(9)
    fit(resume=True, run={"callbacks": [other]})
    assert other.patience == 9
    assert "callbacks.EarlyStopping.patience was 3, is 9" in caplog.text


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_another_stages_checkpoint_is_refused_with_the_way_out(
    fit: Fit, tokenizer: TokenizerSpec, tmp_path: Path, stage: str
) -> None:
    fit()
    module = DPOModule(PolicySpec(config=shallow()), tokenizer=tokenizer, reference=FrozenReference())
    with pytest.raises(ValueError, match=r"two\.ckpt is a checkpoint of SFTModule, .* is DPOModule: .*`lion export"):
        getattr(trainer(), stage)(module, Rows(PAIRS), ckpt_path=tmp_path / "two.ckpt")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_weights_of_another_shape_are_refused_in_one_line_outside_of_training_too(
    fit: Fit, tokenizer: TokenizerSpec, tmp_path: Path, stage: str
) -> None:
    fit()
    module = SFTModule(PolicySpec(config=shallow(hidden_size=64)), tokenizer=tokenizer)
    with pytest.raises(
        ValueError, match=r"another shape than the model's \(policy\.config\.head.*hidden_size was 32, is 64"
    ):
        getattr(trainer(), stage)(module, Rows(ROWS), ckpt_path=tmp_path / "two.ckpt")


@pytest.mark.filterwarnings("ignore")
def test_weights_alone_are_saved_evaluated_and_not_gone_on_from(
    fit: Fit, tokenizer: TokenizerSpec, tmp_path: Path
) -> None:
    first = fit()
    first.save_checkpoint(tmp_path / "two.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=r"two\.ckpt holds the weights alone .*`lion export"):
        fit(resume=True)
    module = SFTModule(PolicySpec(config=shallow()), tokenizer=tokenizer)
    trainer().validate(module, Rows(ROWS), ckpt_path=tmp_path / "two.ckpt", verbose=False)
    saved = weights(first)
    assert all(torch.equal(parameter, saved[name]) for name, parameter in module.named_parameters())


def test_a_folder_is_the_same_by_whichever_path_and_a_template_by_whichever_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert not changes({"model.policy.path": str(tmp_path)}, {"model.policy.path": str(tmp_path / "link")})
    (changed,) = changes({"model.policy.path": str(tmp_path)}, {"model.policy.path": "/elsewhere"})
    assert changed.refused
    name = "model.tokenizer.chat_template"
    assert not changes({name: "chatml 12ab"}, {name: "copy.jinja 12ab"})
    assert changes({name: "own.jinja 12ab"}, {name: "own.jinja 34cd"})[0].refused


def test_a_changed_template_under_the_same_name_is_refused(fit: Fit, tokenizer: TokenizerSpec, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    spec = TokenizerSpec(tokenizer.path, chat_template=str(template))
    fit(tokenizer=spec)
    template.write_text("{% for m in messages %}{{ m['role'] }}{{ m['content'] }}<|im_end|>{% endfor %}")
    with pytest.raises(ValueError, match=r"model\.tokenizer\.chat_template was .*own\.jinja \w+, is .*own\.jinja \w+"):
        fit(resume=True, tokenizer=spec)


def test_a_text_of_many_lines_is_told_on_one() -> None:
    told = _shown("class A:\n    pass\n")
    assert told.startswith("a text of 3 lines (")
    assert told != _shown("class B:\n    pass\n")
