"""Builds a tiny model of a type and checks it: packed rows, shared prompts, a DPO step, LoRA, export and reload."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lion_lightning.data.packing.collate import collate
from lion_lightning.errors import first_line
from lion_lightning.models.checkpoints.export import export_checkpoint
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec, read_template
from lion_lightning.modules.dpo import DPOModule
from lion_lightning.ops.layout import RowLayout
from lion_lightning.references.base import FrozenReference
from lion_lightning.tools.models.tiny import VOCABULARY, tiny_config
from lion_lightning.types import PackedBatch, Sample, SampleSegment

TOLERANCE = 1e-5
"""Largest difference of fp32 log-probs and logits, relative to the largest or to 1."""

GRADIENT_TOLERANCE = 1e-4
"""Largest difference of fp32 gradients, relative to the largest."""

STEPS = ("build", "packed", "exact", "prefix", "DPO", "LoRA", "export")


@dataclass
class ModelCheck:
    """Results for a type of model.

    Attributes:
        model_type: The type.
        passed: Steps of :data:`STEPS` that were right.
        packed: True where rows run packed; False where every sequence runs alone in a padded batch.
        failed: The step that was not right; empty where all were.
        reason: Why it was not, or why the model runs padded or takes no bidirectional prefix; one line.
    """

    model_type: str
    passed: list[str] = field(default_factory=list)
    packed: bool = False
    failed: str = ""
    reason: str = ""


def check_model(model_type: str, folder: Path) -> ModelCheck:
    """Check a type of model, step by step, up to the first that fails.

    Args:
        model_type: One of :func:`~lion_lightning.tools.models.tiny.model_types`.
        folder: An empty folder for tokenizer, checkpoint and export.
    """
    check = ModelCheck(model_type)
    torch.manual_seed(0)
    try:
        with _warnings(check):
            check.failed = "build"
            spec = PolicySpec(config=tiny_config(model_type))
            policy = spec.build()
            check.passed.append("build")
            check.packed = policy.packed
            check.passed += ["packed"] if policy.packed else []
            check.failed = "exact"
            require_exact(policy)
            check.passed.append("exact")
            check.failed = "prefix"
            if policy.causal_only is None:
                require_bidirectional(policy)
                check.passed.append("prefix")
            check.reason = check.reason or policy.causal_only or ""
            check.failed = "DPO"
            module = trained(spec, tokenizer_folder(folder), folder)
            check.passed.append("DPO")
            check.failed = "LoRA"
            require_exact(adapted(spec))
            check.passed.append("LoRA")
            check.failed = "export"
            require_equal_export(module, folder)
            check.passed.append("export")
            check.failed = ""
    except Exception as error:  # any model of transformers, so any error
        check.reason = first_line(error) or type(error).__name__
    return check


@contextmanager
def _warnings(check: ModelCheck) -> Iterator[None]:
    """Keep the first warning of the package as the reason why a model runs padded."""
    logger = logging.getLogger("lion_lightning")
    handler = logging.Handler(logging.WARNING)

    def keep(record: logging.LogRecord) -> None:
        check.reason = check.reason or record.getMessage()

    handler.emit = keep  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def trees(*samples: Sequence[int], seed: int = 0) -> PackedBatch:
    """A packed row of random tokens: of each sample the lengths of a prompt and its answers, which are targets.

    Args:
        samples: Lengths; a sample of one length is a document. The first answer is preferred to each of the others.
        seed: Of the tokens.
    """
    generator = np.random.default_rng(seed)
    made = []
    for index, lengths in enumerate(samples):
        segments = []
        for number, length in enumerate(lengths):
            ids = generator.integers(3, VOCABULARY, length).astype(np.int32)
            is_target = number > 0 or len(lengths) == 1
            segments.append(SampleSegment(ids, np.full(length, is_target), parent=0 if number else -1))
        pairs = tuple((0, other) for other in range(1, len(lengths) - 1))
        made.append(Sample(tuple(segments), index, pairs=pairs))
    return collate(made, capacity=sum(map(sum, samples)))


def alone_logps(policy: PolicyModel, batch: PackedBatch) -> Tensor:
    """Log-probs of a batch's targets by the plain model: each segment with its ancestors alone, unpadded."""
    values = []
    for number, access in enumerate(RowLayout(batch.segments).accesses):
        places = torch.cat([torch.arange(span.start, span.stop) for span in access.keys])
        mine = (batch.target_segments == number).nonzero().flatten()
        if not len(mine):
            continue
        logits = policy.causal_lm(input_ids=batch.input_ids[places][None], use_cache=False).logits[0].float()
        rows = torch.searchsorted(places, batch.logit_positions[mine])
        values.append(logits.log_softmax(-1)[rows].gather(1, batch.targets[mine, None]).squeeze(1))
    return torch.cat(values)


def require_exact(policy: PolicyModel) -> None:
    """Compare log-probs and gradients of a row of trees with those of each sequence alone.

    Raises:
        ValueError: They differ by more than :data:`TOLERANCE`.
    """
    policy.eval()
    batch = trees((7,), (6, 5, 9, 3), (1,), (4, 8, 2), (11,))
    values = policy(batch).values
    gradients = _gradients(policy, values)
    attention = policy.causal_lm.config._attn_implementation
    policy.causal_lm.set_attn_implementation("eager")  # the model's own definition
    expected = alone_logps(policy, batch)
    expected_gradients = _gradients(policy, expected)
    policy.causal_lm.set_attn_implementation(attention)
    difference = float((values - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    off = max(float((gradients[name] - expected_gradients[name]).abs().max()) / largest for name in expected_gradients)
    if not (difference <= TOLERANCE and off <= GRADIENT_TOLERANCE):
        raise ValueError(f"log-probs differ by {difference:.1e} and gradients by {off:.1e} from each sequence alone")


@torch.no_grad()
def require_bidirectional(policy: PolicyModel) -> None:
    """Change each token of a row with a bidirectional prompt, and see which hidden states change with it.

    Raises:
        ValueError: They are not those of the tokens that see it.
    """
    policy.eval()
    batch = trees((4,), (6, 3, 2))
    segments = tuple(span._replace(bidirectional=number == 1) for number, span in enumerate(batch.segments))
    batch, sees = replace(batch, segments=segments), RowLayout(segments).visible
    before = policy.hidden_states(batch)
    for place, token in enumerate(batch.input_ids.tolist()):
        ids = batch.input_ids.clone()
        ids[place] = token + 1 if token + 1 < VOCABULARY else 3
        change = (policy.hidden_states(replace(batch, input_ids=ids)) - before).abs().amax(1)
        changed = change > TOLERANCE * before.abs().max()  # experts add up rows of others in another order
        if not torch.equal(changed, sees[:, place]):
            raise ValueError(f"with a bidirectional prompt, tokens see token {place} that should not, or do not see it")


def _gradients(policy: PolicyModel, values: Tensor) -> dict[str, Tensor]:
    policy.zero_grad()
    torch.autograd.backward((torch.linspace(-1, 2, len(values)) * values).sum())
    return {name: parameter.grad.clone() for name, parameter in policy.named_parameters() if parameter.grad is not None}


def trained(spec: PolicySpec, tokenizer: TokenizerSpec, folder: Path) -> DPOModule:
    """A module after one step of DPO, with its checkpoint in ``folder``.

    Raises:
        ValueError: The loss of the first step is not log 2, or no weight moved.
    """
    torch.manual_seed(0)
    module = DPOModule(
        spec, reference=FrozenReference(), tokenizer=tokenizer, optimizer=partial(torch.optim.SGD, lr=0.1)
    )
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader([trees((6, 5, 9), (4, 8, 2))], batch_size=None))  # type: ignore[arg-type]
    loss = float(trainer.callback_metrics["train/loss"])
    if not abs(loss - float(np.log(2))) <= 1e-4:  # policy and reference are equal before the first step
        raise ValueError(f"the loss of the first DPO step is {loss:.4f}, not log 2")
    trainer.save_checkpoint(folder / "last.ckpt")
    return module


def adapted(spec: PolicySpec) -> PolicyModel:
    """A policy with adapters that change its outputs."""
    torch.manual_seed(0)
    policy = PolicySpec(config=spec.config, lora=LoRASpec(r=2)).build()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return policy


def require_equal_export(module: DPOModule, folder: Path) -> None:
    """Export the checkpoint in ``folder``, load it by transformers alone, and compare logits.

    Raises:
        ValueError: They differ by more than :data:`TOLERANCE`.
    """
    out = export_checkpoint(folder / "last.ckpt", folder / "export")
    reloaded: Any = AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    policy = module.policy_model.eval()
    policy.causal_lm.set_attn_implementation("eager")
    ids = torch.arange(3, 33)[None]
    with torch.no_grad():
        logits = reloaded(input_ids=ids, use_cache=False).logits
        difference = float((logits - policy.causal_lm(input_ids=ids, use_cache=False).logits).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(logits.abs().max())):
        raise ValueError(f"logits of the reloaded export differ by {difference:.1e}")


def tokenizer_folder(folder: Path) -> TokenizerSpec:
    """A tokenizer of as many words as the models have rows, with ChatML."""
    words = ["<pad>", "<|im_start|>", "<|im_end|>", *(f"w{number}" for number in range(3, VOCABULARY))]
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    made.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=read_template("chatml"),
    ).save_pretrained(folder / "tokenizer")
    return TokenizerSpec(str(folder / "tokenizer"))
