"""What cannot be trained or resumed in pieces is refused on every rank, in a line; no rank waits for another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import ModelParallelStrategy

from examples.keyword_judge import KeywordJudge
from lion_lightning.callbacks import HuggingFaceExport, OnPolicySampling
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.errors import explain
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules import SFTModule
from lion_lightning.sampling.transformers import TransformersSampler
from lion_lightning.strategies import FSDP2Strategy
from tests.distributed.fsdp1 import FSDPOnCPU
from tests.distributed.ranks import run_ranks
from tests.tiny import LEARNED_POSITIONS, Rows, config, policy, row, tokenizer_folder, trainer

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]


class Whole(SFTModule):
    """Builds its policy itself, and does not shard it."""

    def configure_model(self) -> None:
        self.policy = self.policy or self.policy_spec.build(self.tokenizer_spec.load())


class WithHead(SFTModule):
    """Shards its policy, and not what it trains beside it."""

    def __init__(self, policy: Any, **kwargs: Any) -> None:
        super().__init__(policy, **kwargs)
        self.head = torch.nn.Linear(2, 2)


def shared(ranks: int = 2) -> FSDP2Strategy:
    return FSDP2Strategy(tensor_parallel_size=ranks)


@dataclass
class Case:
    """A run that is refused.

    Attributes:
        said: What every rank says.
        strategy: Makes the strategy.
        kind: Of module.
        model: Its config.
        lora: Its adapters.
        options: Of the Trainer; a list has one value for each rank.
        start: Checkpoint to go on from, in the test's folder.
    """

    said: str
    strategy: Callable[[], Any] = FSDP2Strategy
    kind: type[SFTModule] = SFTModule
    model: dict[str, Any] = field(default_factory=config)
    lora: LoRASpec | None = None
    options: dict[str, Any] = field(default_factory=dict)
    start: str | None = None


ROUNDS = OnPolicySampling(TransformersSampler(), KeywordJudge())
# Of all the models that transformers has, one of the few whose code does not say what its layers are.
NO_LAYERS = {"model_type": "ctrl", "vocab_size": 101, "n_embd": 32, "dff": 48, "n_layer": 1, "n_head": 4}
REFUSED = {
    "nothing is sharded": Case("Whole's leaves policy.model.model.embed_tokens.weight, policy.", kind=Whole),
    "a head is left whole": Case("WithHead's leaves head.weight, head.bias unsharded on each rank", kind=WithHead),
    "averaging": Case(
        "EMAWeightAveraging does not work with weights that", options={"callbacks": EMAWeightAveraging()}
    ),
    "no plan": Case("transformers has no plan for gpt2 models", shared, model=LEARNED_POSITIONS),
    "experts": Case("plan for mixtral models splits layers in ways that are not", shared, model=config("mixtral")),
    "key heads": Case(
        "do not divide the model's num_key_value_heads (1), ", shared, model=config(num_key_value_heads=1)
    ),
    "features": Case("intermediate_size (49), ", shared, model=config(intermediate_size=49)),
    "rows, by Lightning's own sizes": Case("do not divide the model's rows of the embedding", ModelParallelStrategy),
    "adapters": Case("policy.lora: tensor parallelism splits no adapters", shared, lora=LoRASpec(r=4)),
    "rounds": Case("OnPolicySampling: each rank samples answers of", shared, options={"callbacks": ROUNDS}),
    "processes": Case("tensor_parallel_size is 3, which does not divide the number of proc", lambda: shared(3)),
    "mixed precision": Case("does not support", options={"precision": "16-mixed"}),
    "precision": Case("16-true cannot be trained", options={"precision": "16-true"}),
    "unequal": Case("trainer.gradient_clip_val is 2.0 there, 1.0 on rank 0", options={"gradient_clip_val": [1.0, 2.0]}),
    "no layers": Case("CTRLLMHeadModel cannot be sharded", model=NO_LAYERS),
    "pieces of FSDPStrategy": Case("fsdp1.ckpt: written by FSDPStrategy", start="fsdp1.ckpt"),
    "pieces for DDP": Case("fsdp2.ckpt: a sharded checkpoint", lambda: "ddp", start="fsdp2.ckpt"),
    "no such checkpoint": Case("nope.ckpt: no such checkpoint", start="nope.ckpt"),
    "within an epoch": Case("number of ranks was 1, is 2", start="alone.ckpt"),
}


def fit(folder: Path, case: Case, rank: int, saved: str | None = None, world: int = 2) -> None:
    """Fit a step of the many that an epoch has, and save there."""
    own = {key: value[rank] if isinstance(value, list) else value for key, value in case.options.items()}
    ranks = {"strategy": case.strategy(), "devices": world} if world > 1 else {}
    module = case.kind(PolicySpec(config=case.model, lora=case.lora), tokenizer=TokenizerSpec(str(folder)))
    data = SFTDataModule([Source(str(folder / "rows.jsonl"))], module.tokenizer_spec, max_length=16)
    run = trainer(max_steps=2 if case.start else 1, **own, **ranks)
    run.fit(module, datamodule=data, ckpt_path=case.start and folder / case.start)
    if saved is not None:
        run.save_checkpoint(folder / saved)


def refused(rank: int, world: int, folder: Path) -> dict[str, str]:
    fit(folder, Case("", FSDP2Strategy), rank, "fsdp2.ckpt")
    fit(folder, Case("", FSDPOnCPU), rank, "fsdp1.ckpt")
    said = {"somebody else's module": foreign(), **no_numbers(rank, world, folder)}
    for name, case in REFUSED.items():
        try:
            fit(folder, case, rank)
        except (MisconfigurationException, ValueError, OSError) as error:
            said[name] = explain(error)
    return said


def foreign() -> str:
    """What is said of a module that knows nothing of this package: its ranks would train two models."""
    with pytest.raises(MisconfigurationException) as caught:
        trainer(max_steps=1, strategy=FSDP2Strategy(), devices=2).fit(BoringModel())
    return explain(caught.value)


class NoNumber(Callback):
    """Breaks a row of the last rank when the step is over."""

    def on_train_batch_end(self, run: Trainer, module: Any, *_: Any) -> None:
        if run.global_rank == run.world_size - 1:
            module.policy_model.causal_lm.model.norm.weight.detach().to_local()[-1] = float("nan")


def no_numbers(rank: int, world: int, folder: Path) -> dict[str, str]:
    """What is said of a file that lacks a weight, and of one that is none, which one rank alone holds."""
    said = {}
    lacking, broken = (PolicySpec(str(folder / name)) for name in ("lacking", "broken"))
    for name, start in (("lacking", lacking), ("loaded", broken), ("trained", config())):
        spec = start if isinstance(start, PolicySpec) else PolicySpec(config=start)
        module = SFTModule(spec, tokenizer=TokenizerSpec(str(folder)))
        ranks: dict[str, Any] = {"strategy": FSDP2Strategy(), "devices": world, "default_root_dir": folder / name}
        run = trainer(max_steps=1, callbacks=[HuggingFaceExport(), NoNumber()], **ranks)
        with pytest.raises((MisconfigurationException, ValueError)) as caught:
            run.fit(module, Rows([row(seed=seed) for seed in range(4)], rank, world))
        said[name] = explain(caught.value)
    return said


def test_every_rank_says_why_in_a_line(tmp_path: Path) -> None:
    tokenizer_folder(tmp_path)
    broken = policy().causal_lm
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[-1, 0] = float("nan")  # the last rank's row
    broken.save_pretrained(tmp_path / "broken")
    broken.save_pretrained(tmp_path / "lacking", state_dict=dict(list(broken.state_dict().items())[:-1]))
    rows = (f'{{"instruction": "w3 w4", "output": "w5 w{number}"}}\n' for number in range(8))
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    fit(tmp_path, Case(""), 0, "alone.ckpt", world=1)
    for said in run_ranks(refused, tmp_path, tmp_path):
        assert "lacking: its weights do not fit the model: missing lm_head.weight" in said["lacking"]
        assert "broken: model.layers.1.mlp.down_proj.weight holds NaN" in said["loaded"]
        assert "nothing was exported: the policy: model.norm.weight holds NaN" in said["trained"]
        assert "BoringModel's leaves layer.weight, layer.bias unsharded" in said["somebody else's module"]
        for name, case in REFUSED.items():
            assert case.said in said[name], name
            assert "\n" not in said[name]
