"""Rates of a run whose clock is turned by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lion_lightning.callbacks import TokenThroughput
from lion_lightning.callbacks.monitors import throughput
from lion_lightning.planning.flops import forward_flops, training_flops
from lion_lightning.types import PackedBatch
from tests import tiny
from tests.unit.callbacks.conftest import CAPACITY, Bench, batches

TOKENS = 25  # of each batch
SAMPLES = 3
TARGETS = 21  # all but the first token of each of the four documents


class Clock:
    """Stands in for the performance counter; it stands still unless a test turns it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)


class Turns(Callback):
    """A micro-batch takes 1 s, a validation 100 s, a checkpoint 1,000 s, the end of an epoch 10,000 s."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *args: Any) -> None:
        self.clock.now += 1.0

    def on_validation_start(self, *args: Any) -> None:
        self.clock.now += 100.0

    def on_save_checkpoint(self, *args: Any) -> None:
        self.clock.now += 1000.0

    def on_train_epoch_end(self, *args: Any) -> None:
        self.clock.now += 10000.0


class SlowRows:
    """A loader that makes each batch wait half a second."""

    def __init__(self, clock: Clock, rows: list[PackedBatch]) -> None:
        self.clock, self.rows = clock, rows

    def __iter__(self) -> Any:
        for row in self.rows:
            self.clock.now += 0.5
            yield row

    def __len__(self) -> int:
        return len(self.rows)


class Recorder(Callback):
    """Keeps what was logged at each optimizer step."""

    def __init__(self) -> None:
        self.rates: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        perf = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("perf/")}
        if len(perf) and trainer.global_step > len(self.rates):
            self.rates.append(perf)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def run(
    bench: Bench, clock: Clock, meter: TokenThroughput, *others: Callback, **options: Any
) -> list[dict[str, float]]:
    recorder = Recorder()
    trainer = bench.trainer(meter, Turns(clock), recorder, *others, **options)
    trainer.fit(bench.module(), SlowRows(clock, batches()), SlowRows(clock, batches(1)))
    return recorder.rates


def test_rates_count_tokens_targets_capacity_and_flops_of_the_window(bench: Bench, clock: Clock) -> None:
    rates = run(bench, clock, TokenThroughput(window=2, peak_flops=1e6))
    model = bench.module()
    model.configure_model()
    flops = training_flops(model.policy_model.causal_lm).of(batches(1)[0])
    assert len(rates) == 6
    # The first batch's wait is before the clock starts; then 1.5 s each, two steps at a time.
    for rate, seconds in zip(rates, [1.0, 1.25, 1.5, 1.5, 1.5, 1.5], strict=True):
        assert rate["perf/packing_efficiency"] == pytest.approx(TOKENS / CAPACITY)
        assert rate["perf/tokens_per_second"] == pytest.approx(TOKENS / seconds)
        assert rate["perf/supervised_tokens_per_second"] == pytest.approx(TARGETS / seconds)
        assert rate["perf/samples_per_second"] == pytest.approx(SAMPLES / seconds)
        assert not {"perf/answers_per_second", "perf/pairs_per_second"} & rate.keys()  # they are documents
        assert rate["perf/mfu"] == pytest.approx(flops / seconds / 1e6, rel=1e-6)


def test_an_answer_in_several_pairs_is_one_answer(bench: Bench, clock: Clock) -> None:
    # One prompt with three answers in all three pairs; rows of documents have neither key.
    tree = tiny.row((7, 5, 9, 4), (-1, 0, 0, 0))
    tree = replace(tree, capacity=CAPACITY, sample_indices=(0,), values=(2.0, 1.0, 0.0), pairs=((0, 1), (0, 2), (1, 2)))
    recorder = Recorder()
    trainer = bench.trainer(TokenThroughput(1, 1e6), Turns(clock), recorder)
    with pytest.warns(UserWarning, match="no transformers model"):
        trainer.fit(Plain(), SlowRows(clock, [tree]))
    [rates] = recorder.rates
    assert (rates["perf/answers_per_second"], rates["perf/pairs_per_second"]) == (3.0, 3.0)
    assert (rates["perf/samples_per_second"], rates["perf/tokens_per_second"]) == (1.0, 25.0)


def test_mismatched_answers_are_no_answers_and_need_no_backward(bench: Bench) -> None:
    # A prompt of 7 tokens, a labeled answer of 5, and one of 9 that belongs to another prompt: of unknown value.
    tree = tiny.row((7, 5, 9), (-1, 0, 0), range(7, 21))
    tree = replace(tree, capacity=CAPACITY, sample_indices=(0,), values=(1.0, math.nan))
    module = bench.module()
    module.configure_model()
    meter = TokenThroughput(1, 1e6)
    meter._flops = training_flops(module.policy_model.causal_lm)
    meter._forward_flops = forward_flops(module.policy_model.causal_lm)
    trained, apart = tiny.row((7, 5), (-1, 0), range(7, 12)), tiny.row((7, 9), (-1, 0), range(7, 16))
    flops = meter._flops.of(trained) + meter._forward_flops.of(apart)
    assert meter._numbers(tree) == [21, 5, 1, 1, 0, CAPACITY, flops]


def speeds(rates: list[dict[str, float]]) -> list[float]:
    return [rate["perf/tokens_per_second"] for rate in rates]


def test_a_step_of_several_micro_batches_counts_them_all_and_their_waits(bench: Bench, clock: Clock) -> None:
    rates = run(bench, clock, TokenThroughput(1, 1e6), accumulate_grad_batches=2)
    assert speeds(rates) == pytest.approx([2 * TOKENS / 2.5, 2 * TOKENS / 3.0, 2 * TOKENS / 3.0])


def test_validation_is_no_training_time(bench: Bench, clock: Clock) -> None:
    rates = run(bench, clock, TokenThroughput(1, 1e6), val_check_interval=2)
    # The wait after a validation (after steps 2 and 4) cannot be told from it and is left out with it.
    assert speeds(rates) == pytest.approx([TOKENS / seconds for seconds in (1.0, 1.5, 1.0, 1.5, 1.0, 1.5)])


def test_checkpoints_are_no_training_time(bench: Bench, clock: Clock) -> None:
    saving = ModelCheckpoint(bench.folder / "checkpoints", every_n_train_steps=3)
    rates = run(bench, clock, TokenThroughput(1, 1e6), saving, enable_checkpointing=True)
    assert speeds(rates) == pytest.approx([TOKENS / seconds for seconds in (1.0, 1.5, 1.5, 1.0, 1.5, 1.5)])


def test_the_time_between_epochs_is_no_training_time(bench: Bench, clock: Clock) -> None:
    rates = run(bench, clock, TokenThroughput(1, 1e6), max_epochs=2, limit_train_batches=2)
    assert speeds(rates) == pytest.approx([TOKENS / seconds for seconds in (1.0, 1.5, 1.0, 1.5)])


class Plain(LightningModule):
    """A module without any transformers model."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(101, 1)

    def training_step(self, batch: PackedBatch, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.table(batch.input_ids).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_any_module_over_packed_batches_has_all_rates_but_mfu(bench: Bench, clock: Clock) -> None:
    recorder = Recorder()
    trainer = bench.trainer(TokenThroughput(1), Turns(clock), recorder)
    with pytest.warns(UserWarning, match=r"no transformers model, so perf/mfu is not logged"):
        trainer.fit(Plain(), SlowRows(clock, batches(2)))
    assert speeds(recorder.rates) == pytest.approx([TOKENS / 1.0, TOKENS / 1.5])
    assert all("perf/mfu" not in rate for rate in recorder.rates)


def test_an_unknown_peak_is_said_and_leaves_mfu_out(
    bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "_matmul_rate", lambda: None)
    with pytest.warns(UserWarning, match="set peak_flops"):
        rates = run(bench, clock, TokenThroughput())
    assert rates
    assert all("perf/mfu" not in rate for rate in rates)


def test_the_peak_of_a_cpu_is_its_best_matrix_product(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    durations = iter([4.0, 2.0, 3.0])

    def slow_product(left: torch.Tensor, right: torch.Tensor) -> None:
        clock.now += next(durations)

    monkeypatch.setattr("torch.mm", slow_product)
    assert throughput._matmul_rate(size=10) == 2 * 10**3 / 2.0


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H200", torch.bfloat16, 989.4e12),
        ("NVIDIA H100 NVL", torch.float16, 835.5e12),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312e12),  # from Lightning's table
        ("NVIDIA Something New", torch.bfloat16, None),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_listed_peak_of_a_gpu_is_that_without_sparsity(
    name: str, dtype: torch.dtype, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
    assert throughput.listed_peak(torch.device("cuda"), dtype) == peak


def test_rows_without_a_capacity_have_no_known_efficiency(bench: Bench, clock: Clock) -> None:
    recorder = Recorder()
    trainer = bench.trainer(TokenThroughput(1, 1e6), Turns(clock), recorder)
    trainer.fit(bench.module(), SlowRows(clock, [replace(row, capacity=0) for row in batches(1)]))
    assert str(recorder.rates[0]["perf/packing_efficiency"]) == "nan"


def test_other_batches_are_refused_with_the_fix(bench: Bench) -> None:
    with pytest.raises(MisconfigurationException, match=r"this one has \['pixels'\]\); take TokenThroughput out of"):
        bench.fit(bench.trainer(TokenThroughput()), train=[{"pixels": torch.ones(1, 3)}])


def test_padding_of_a_plain_batch_is_capacity_and_no_token(bench: Bench, clock: Clock) -> None:
    class Padded(LightningModule):
        """A project that knows nothing of this package."""

        def __init__(self) -> None:
            super().__init__()
            self.model = tiny.policy(attention="sdpa").causal_lm

        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            loss: torch.Tensor = self.model(**batch).loss
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    ids = torch.full((2, 4), 7)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)}
    recorder = Recorder()
    bench.fit(bench.trainer(TokenThroughput(1, 1e6), Turns(clock), recorder), Padded(), [batch])
    rates = recorder.rates[0]
    # six tokens of eight, of which all but the first of each sequence are targets
    assert (rates["perf/tokens_per_second"], rates["perf/samples_per_second"]) == (6.0, 2.0)
    assert (rates["perf/supervised_tokens_per_second"], rates["perf/packing_efficiency"]) == (4.0, 0.75)


@pytest.mark.parametrize("wrong", [{"window": 0}, {"peak_flops": 0.0}])
def test_arguments_that_are_not_positive_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TokenThroughput(**wrong)
