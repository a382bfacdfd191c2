"""The summary before the first step, and its estimate of memory."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lion_lightning import DPOModule, FrozenReference, SFTModule
from lion_lightning.callbacks import FusedBackward, StartupSummary, startup
from lion_lightning.callbacks.startup import lines, summarize
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.data.reports.row_messages import RowMessages
from lion_lightning.data.reports.tree_reports import PairReport
from lion_lightning.data.selection.documents import Regrouped
from lion_lightning.data.selection.spans import FilterCounts
from lion_lightning.losses import SimPOLoss
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.planning.job import job_of
from lion_lightning.planning.memory import MemoryEstimate
from lion_lightning.planning.sharding_layout import placements
from tests.families import family
from tests.unit.callbacks.conftest import Bench


def written(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bench.folder / "run" / "startup.json").read_text())
    return found


def test_the_summary_is_written_before_the_first_step(bench: Bench) -> None:
    module = bench.module()
    bench.fit(bench.trainer(StartupSummary(), accumulate_grad_batches=2, max_steps=1), module)
    found = written(bench)
    size = sum(parameter.numel() for parameter in module.parameters())
    assert found["policy"] == {
        "class": "LlamaForCausalLM",
        "parameters": size,
        "trainable": size,
        "dtype": "float32",
        "recompute": "none",
    }
    assert found["run"] == {"epochs": 1, "steps": 1, "accumulate": 2, "devices": 1}
    assert found["memory"] == {}  # of a loader that does not say how many tokens a micro-batch has


def test_the_measured_peak_is_told_beside_the_estimate(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    class Estimated(StartupSummary):
        def on_train_start(self, *arguments: Any) -> None:
            super().on_train_start(*arguments)
            self._summary["memory"] = {"total": 3 * 2**30}

    with caplog.at_level("INFO"):
        bench.fit(bench.trainer(Estimated(), max_steps=1))
    (line,) = [record.message for record in caplog.records if "measured" in record.message]
    assert re.fullmatch(
        r"memory     measured, [\d.]+ [GM]iB at the peak \(the process, with all libraries\); 3\.0 GiB were estimated "
        "for tensors",
        line,
    )
    assert written(bench)["measured"]["memory"] > 2**26  # of Python and torch alone


class Unread:
    """Samples that nobody may read: their lengths say it all."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, position: int) -> Any:
        raise AssertionError("read")


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> PackedLoader:
    """The training loader of every trainer: two documents of 12 tokens per row."""
    loader = PackedLoader(Unread(), np.full(6, 12), capacity=32, batch_size=2)
    monkeypatch.setattr("lightning.pytorch.Trainer.train_dataloader", property(lambda trainer: loader))
    monkeypatch.setattr("lion_lightning.callbacks.startup.run_length", lambda trainer: 7)
    return loader


def test_a_packed_loader_is_described_by_rows_and_tokens(bench: Bench, packed: PackedLoader) -> None:
    found = summarize(bench.trainer(accumulate_grad_batches=3), bench.module())
    assert found["data"] == {"samples": 6, "tokens": 72, "rows": 3, "row_tokens": 32, "full": "75.0%"}
    assert found["run"] == {"epochs": 1, "steps": 7, "accumulate": 3, "devices": 1, "step_tokens": 2 * 32 * 3}
    assert "data       6 samples of 72 tokens in 3 rows of 32, 75.0% full" in lines(found)


def test_trees_are_described_by_pairs_answers_and_prompts(bench: Bench, packed: PackedLoader) -> None:
    none = FilterCounts()
    rest: dict[str, Any] = {"rows": 3, "skipped": 0, "read": none, "left_out": {}, "truncated": {}, "split": 0}
    rest |= {"repeated": none, "supervised": 40, "longest": 9, "messages": RowMessages()}
    rest |= {
        "prompts": 6,
        "answers": 24,
        "prompt": 12,
        "chosen": 30,
        "rejected": 30,
        "joined": Regrouped(),
        "cut": Regrouped(),
    }
    trainer: Any = bench.trainer()
    trainer.datamodule = SimpleNamespace(reports=[PairReport(name="ranked", kept=FilterCounts(36, 72), **rest)])
    module = DPOModule(bench.module().policy_spec, tokenizer=bench.tokenizer, loss=SimPOLoss())
    found = summarize(trainer, module)
    assert {name: found["data"][name] for name in ("samples", "prompts", "answers")} == {
        "samples": 6,
        "prompts": 6,
        "answers": 24,
    }
    assert "data       36 pairs of 24 answers to 6 prompts: 72 tokens in 3 rows of 32, 75.0% full" in lines(found)
    assert "objective  SimPOLoss(beta=2, gamma=1) over pairs" in lines(found)
    # Its memory is that of rows of four answers to a prompt.
    job = job_of(module, 64, 64, "32-true", 4, on_gpu=False)
    assert found["memory"]["total"] == placements("auto", 1)[0].peak(job).total


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_memory_is_that_of_lion_plan(bench: Bench, packed: PackedLoader, precision: Any, accumulate: int) -> None:
    module = bench.module(lora=LoRASpec(r=2))
    before = torch.get_rng_state()
    found = summarize(bench.trainer(accumulate_grad_batches=accumulate, precision=precision), module)
    assert torch.equal(torch.get_rng_state(), before)
    job = job_of(module, 64, 64, precision, accumulate=accumulate, on_gpu=False)
    peak = placements("auto", 1)[0].peak(job)
    assert {**peak.parts, "total": peak.total} == {
        name: size for name, size in found["memory"].items() if name not in ("peak_in", "device")
    }
    text = f"at the peak ({peak.moment}): weights {peak.weights / 2**20:.1f} MiB"
    assert [line for line in lines(found) if line.startswith("memory ") and text in line]


def test_the_estimate_knows_of_steps_within_the_backward_pass(
    bench: Bench, packed: PackedLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(startup, "job_of", lambda *_, **settings: asked.append(settings["fused"]))
    for callbacks in ([FusedBackward()], []):
        summarize(bench.trainer(*callbacks), bench.module())
    assert asked == [True, False]


def test_a_second_model_is_part_of_the_memory(bench: Bench, packed: PackedLoader) -> None:
    module = DPOModule(bench.module().policy_spec, tokenizer=bench.tokenizer, reference=FrozenReference())
    memory = summarize(bench.trainer(), module)["memory"]
    assert memory["reference"] == memory["weights"] > 0


def test_without_an_estimate_there_is_no_line_of_memory(bench: Bench, packed: PackedLoader) -> None:
    def stuck(groups: Any) -> Any:
        raise RuntimeError("needs a GPU")

    module = bench.module()
    module.optimizer_factory = stuck
    found = summarize(bench.trainer(), module)
    assert found["memory"] == {}
    assert not [line for line in lines(found) if line.startswith("memory")]


def test_what_was_found_in_rows_is_told_source_by_source(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Data:
        def row_messages(self) -> dict[str, list[str]]:
            return {"sums": ["rows left out, an answer has no text: 2", "not used: hint"], "chats": []}

    monkeypatch.setattr("lion_lightning.callbacks.startup.run_length", lambda trainer: 7)
    monkeypatch.setattr("lightning.pytorch.Trainer.train_dataloader", property(lambda trainer: None))
    trainer: Any = bench.trainer()
    trainer.datamodule = Data()  # as Lightning attaches it
    found = summarize(trainer, bench.module())
    assert found["rows"]["sums"][1] == "not used: hint"
    assert lines(found)[-1] == "rows       sums: rows left out, an answer has no text: 2; not used: hint"


def test_adapters_are_counted_as_trained_and_the_base_is_not(bench: Bench) -> None:
    module = bench.module(lora=LoRASpec(r=2))
    bench.fit(bench.trainer(StartupSummary(), max_steps=1), module)
    found = written(bench)
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    assert found["policy"]["trainable"] == trained < found["policy"]["parameters"]


def test_more_than_the_device_has_is_a_warning(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = {"total": 3 * 2**30, "device": 2**30, "peak_in": "forward", **MemoryEstimate().parts}
    monkeypatch.setattr("lion_lightning.callbacks.startup._memory", lambda *arguments: memory)
    with pytest.warns(UserWarning, match=r"needs about 3\.0 GiB per device, which has 1\.0: lower data\.batch_size"):
        bench.fit(bench.trainer(StartupSummary(), max_steps=1))


FEW = r"the run makes 3 optimizer steps, which is few: raise trainer\.max_epochs, or lower"


def test_a_run_of_few_steps_is_told_so(bench: Bench) -> None:
    with pytest.warns(UserWarning, match=FEW):
        bench.fit(bench.trainer(StartupSummary(), accumulate_grad_batches=2))


@pytest.mark.parametrize("asked", [{"max_steps": 3}, {"limit_train_batches": 3}, {"overfit_batches": 3}])
def test_a_run_that_was_asked_for_few_steps_is_not(
    bench: Bench, asked: dict[str, Any], recwarn: pytest.WarningsRecorder
) -> None:
    bench.fit(bench.trainer(StartupSummary(), **asked))
    assert not [warning for warning in recwarn if "which is few" in str(warning.message)]


def test_any_module_is_told(bench: Bench) -> None:
    trainer = bench.trainer(StartupSummary(), max_steps=1, limit_val_batches=0)
    trainer.fit(BoringModel())
    found = written(bench)
    policy = {"class": "BoringModel", "parameters": 66, "trainable": 66, "dtype": "float32", "recompute": "none"}
    assert found["policy"] == policy
    assert (found["reference"], found["data"], found["memory"]) == ({}, {}, {})


def test_what_is_special_about_the_policy_is_said(bench: Bench) -> None:
    notes = "2 token mixers run sequence by sequence"
    module = SFTModule(PolicySpec(config=family("falcon_h1")), tokenizer=bench.tokenizer)
    module.configure_model()
    assert summarize(bench.trainer(), module)["policy"]["notes"] == notes
    for coefficient, text in (
        (0.01, "experts balanced by router_aux_loss_coef 0.01"),
        (0.0, "experts not balanced (router_aux_loss_coef is 0; the 0.001 of the model's config is not used)"),
    ):
        policy = PolicySpec(config=family("mixtral"))
        module = SFTModule(policy, tokenizer=bench.tokenizer, router_aux_loss_coef=coefficient)
        module.configure_model()
        (line,) = [line for line in lines(summarize(bench.trainer(), module)) if line.startswith("policy")]
        assert line.endswith(f"recompute: none, {text}")
