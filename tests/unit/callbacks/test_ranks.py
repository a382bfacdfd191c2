"""All callbacks in one run of two processes."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM

from lion_lightning.callbacks import BeforeAfter, HuggingFaceExport, TokenThroughput
from tests.unit.callbacks.conftest import CAPACITY, Bench
from tests.unit.callbacks.monitors.test_throughput import TARGETS, TOKENS, Clock, Turns


@pytest.mark.distributed
def test_two_ranks_add_up_their_tokens_and_write_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)  # each process has its own copy; a batch takes one second in both
    callbacks = (TokenThroughput(1, peak_flops=1e6), Turns(clock), BeforeAfter(["w5", "w6 w7"], 4), HuggingFaceExport())
    trainer = bench.trainer(*callbacks, strategy="ddp_fork", devices=2)
    bench.fit(trainer)
    metrics = trainer.callback_metrics  # of rank 0
    assert float(metrics["perf/tokens_per_second"]) == pytest.approx(2 * TOKENS)
    assert float(metrics["perf/supervised_tokens_per_second"]) == pytest.approx(2 * TARGETS)
    assert float(metrics["perf/packing_efficiency"]) == pytest.approx(TOKENS / CAPACITY)
    single = bench.trainer(TokenThroughput(1, peak_flops=1e6), Turns(clock))
    bench.fit(single)
    # twice the work on twice the devices
    assert float(metrics["perf/mfu"]) == pytest.approx(float(single.callback_metrics["perf/mfu"]))
    answers = json.loads((bench.folder / "run" / "before_after.json").read_text("utf-8"))["answers"]
    assert [answer["prompt"] for answer in answers] == ["w5", "w6 w7"]
    AutoModelForCausalLM.from_pretrained(bench.folder / "run" / "export")
