"""The estimate of a step, against counts by hand and against the same step on real tensors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch.optim import SGD, AdamW, Optimizer
from transformers import AutoModelForCausalLM

from lion_lightning.cli import main
from lion_lightning.losses import SimPOLoss
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.quantization import NF4Spec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules.dpo import DPOModule
from lion_lightning.modules.sft import SFTModule
from lion_lightning.planning.dry_run import DryRun, packed_batch
from lion_lightning.planning.flops import forward_flops
from lion_lightning.planning.job import Job, documents, job_of, trees
from lion_lightning.planning.memory import Offloaded, Replicated, Sharded
from lion_lightning.planning.memory_counter import MemoryCounter
from lion_lightning.planning.meta_model import meta_model
from lion_lightning.planning.optimizer_memory import step_memory
from lion_lightning.planning.sharding_layout import placements, with_recompute_of
from lion_lightning.planning.sizes import weight_bytes
from lion_lightning.strategies import FSDP2Strategy, WrapLayers
from lion_lightning.tools.plan.report import PlanReport
from lion_lightning.tools.plan.step_time import Machine, micro_batch_flops, step_time
from lion_lightning.tools.train.config_file import read_config_file, with_files_read
from lion_lightning.types import segment_table
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore")

WIDTH, INNER, KEYS = 32, 48, 16


def sizes(vocabulary: int, layers: int = 2) -> tuple[int, int]:
    """Weights of a layer (q and o, k and v, three of the MLP, two norms) and of the rest (embedding, head, norm)."""
    layer = 2 * WIDTH * WIDTH + 2 * WIDTH * KEYS + 3 * WIDTH * INNER + 2 * WIDTH
    return layer, 2 * vocabulary * WIDTH + WIDTH


def job(**changes: Any) -> Job:
    spec = PolicySpec(config=tiny.config(tie_word_embeddings=False))
    plain = {"spec": spec, "precision": "32-true", "optimizer": AdamW, "on_gpu": False}
    lengths, parents = documents(48, 16)
    return Job(**{"lengths": lengths, "parents": parents, **plain, **changes})


@cache
def plain() -> Job:
    """The same one for all tests, since its dry run is done once."""
    return job()


@pytest.fixture
def total() -> int:
    config = PolicySpec(config=tiny.config()).load_config()
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (WIDTH, INNER, 2)
    layer, rest = sizes(config.vocab_size)
    return 2 * layer + rest


def test_weights_gradients_and_state_are_counted(total: int) -> None:
    buffers = 4 * (WIDTH // 4) // 2 * 2  # rotary frequencies and their originals
    own = plain()
    peak = max(Replicated().moments(own), key=lambda moment: moment.gradients)
    assert (peak.weights - 4 * total) in (0, buffers // 2, buffers)
    assert peak.gradients == 4 * total
    assert peak.optimizer == 8 * total
    piece = Sharded(8).peak(own)
    assert piece.gradients == -(-4 * total // 8)
    assert piece.optimizer == -(-8 * total // 8)
    assert {(e.weights, e.gradients, e.optimizer) for e in Offloaded(8).moments(own)} == {(0, 0, 0)}


def test_steps_within_the_backward_pass_hold_one_gradient(total: int) -> None:
    largest, own = 4 * 101 * WIDTH, job(fused=True)  # bytes of the embedding, and of the head
    moments = {estimate.moment: estimate for estimate in Replicated().moments(own)}
    assert {estimate.optimizer for estimate in moments.values()} == {8 * total}
    last = moments.pop("optimizer step")
    assert last.gradients == largest
    assert last.activations == pytest.approx(2 * largest, rel=0.01)  # AdamW's two roots, of a weight at a time
    assert {estimate.gradients for estimate in moments.values()} == {0}  # that of the moment is in what the pass holds
    after = {estimate.moment: estimate.total for estimate in Replicated().moments(plain())}
    assert moments["end of backward"].total < after["end of backward"] - 2 * total
    assert {estimate.gradients for estimate in Sharded(8).moments(own)} == {0}
    assert Replicated(2).peak(own) == Replicated(2).peak(plain())  # DDP, where it is refused


class Bytes(Optimizer):
    """Keeps a byte for each weight, as 8-bit optimizers do, and looks at values."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            float(parameter.sum())
            self.state[parameter]["moment"] = torch.zeros(parameter.shape, dtype=torch.uint8)


class Broken(Bytes):
    def step(self, closure: Any = None) -> Any:
        raise RuntimeError("no kernel")


def test_an_optimizer_that_looks_at_values_is_tried_on_a_real_weight(total: int) -> None:
    # AdamW, a weight at a time: the root of the second moment, and that root corrected for bias
    shapes = [(torch.Size((3, 5)), torch.float32)]
    assert step_memory(AdamW, shapes, foreach=False) == {"activations": 2 * 4 * 15, "state": 8 * 15, "trained": 4 * 15}
    assert step_memory(SGD, shapes, foreach=False) == {"activations": 0, "state": 0, "trained": 4 * 15}
    assert step_memory(Bytes, shapes, foreach=False) == {"state": 2**20, "trained": 2**22}
    assert Replicated().peak(job(optimizer=Bytes)).optimizer == total
    with pytest.raises(ValueError, match=r"model.optimizer: it does not step on a CPU \(no kernel\)"):
        step_memory(Broken, shapes, foreach=False)


def test_a_second_model_counts_as_reference(total: int) -> None:
    second = PolicySpec(config=tiny.config(tie_word_embeddings=False), dtype="bfloat16")
    assert Replicated().peak(job(references=(second,))).reference - 2 * total in range(128)


@pytest.mark.slow
def test_adapters_leave_the_base_without_gradients_and_four_bits_shrink_it() -> None:
    spec = PolicySpec(config=tiny.config(tie_word_embeddings=False), lora=LoRASpec(r=2))
    trained = sum(tensor.numel() for tensor in job(spec=spec).trained)
    assert trained == 2 * 2 * (2 * 2 * WIDTH + 2 * (WIDTH + KEYS) + 3 * (WIDTH + INNER))
    moment = max(Replicated().moments(job(spec=spec)), key=lambda one: one.gradients)
    assert (moment.gradients, moment.optimizer) == (4 * trained, 8 * trained)
    linear = 2 * (sizes(0)[0] - 2 * WIDTH)
    small = replace(spec, quantization=NF4Spec(double_quant=False))
    saved = weight_bytes(spec, meta_model(spec)) - weight_bytes(small, meta_model(small))
    assert saved == 4 * linear - round(linear * 4.5 / 8)


@pytest.mark.parametrize(
    ("rows", "recompute"),
    [
        pytest.param(documents(48, 16), "none", id="documents", marks=pytest.mark.exhaustive),
        pytest.param(documents(48, 16), "full", id="documents, full", marks=pytest.mark.exhaustive),
        pytest.param(trees(48, 32, 2), "none", id="pairs", marks=pytest.mark.exhaustive),
        pytest.param(trees(48, 32, 2), "elementwise", id="pairs, elementwise", marks=pytest.mark.exhaustive),
        pytest.param(trees(48, 32, 2), "full", id="pairs, full", marks=pytest.mark.slow),
    ],
)
def test_a_rehearsal_holds_what_the_real_step_holds(rows: Any, recompute: Any) -> None:
    """Of five layers, from rehearsals of two and of three; the real one on real tensors."""
    shape = tiny.config(tie_word_embeddings=False, num_hidden_layers=5)
    spec = PolicySpec(config=shape, recompute=recompute)
    lengths, parents = rows
    held = DryRun(spec, lengths, parents, autocast=False, optimizer=AdamW, foreach=False).held()
    auto: Any = AutoModelForCausalLM
    policy = PolicyModel(spec.adapted(auto.from_config(spec.load_config(), attn_implementation="lion"), [])).train()
    batch, counter = packed_batch(lengths, parents), MemoryCounter((*policy.parameters(), *policy.buffers()))
    with counter:
        with counter.at("forward"):
            loss = policy(batch).values.sum()
        with counter.at("backward"):
            torch.autograd.backward(loss)
    assert held["forward"].total() == pytest.approx(counter.peaks["forward"].total(), rel=0.02)
    backward = max(held[moment].total() for moment in held if "backward" in moment)
    assert backward == pytest.approx(counter.peaks["backward"].total(), rel=0.05)


def test_time_is_the_longer_of_products_and_traffic(total: int) -> None:
    slow = Machine(tflops=1e-6, mfu=0.5, bandwidth=1e9)
    one = step_time(job(accumulate=3), Replicated(4), slow)
    assert one.traffic == pytest.approx(2 * 3 / 4 * 4 * total / 1e18)
    assert one.seconds == one.compute == pytest.approx(3 * step_time(plain(), Replicated(1), slow).compute)
    assert one.tokens == 48 * 3 * 4
    halves = step_time(job(precision="bf16-mixed"), Sharded(4), slow)
    assert halves.traffic == pytest.approx((2 * 2 + 4) * total * 3 / 4 / 1e18)


def test_rows_are_trees_of_equally_long_segments() -> None:
    # Seven segments of 100 // 7 tokens each; a prompt and an answer are within the limit.
    assert trees(100, 64, 6) == ((14,) * 7, (-1, 0, 0, 0, 0, 0, 0))
    # A limit of 16 leaves 8 for a segment: 48 tokens are two trees of a prompt and two answers.
    assert trees(48, 16, 2) == ((8,) * 6, (-1, 0, 0, -1, 3, 3))


def test_a_module_says_how_many_answers_its_rows_have() -> None:
    spec, tokenizer = PolicySpec(config=tiny.config()), TokenizerSpec("unused")
    assert job_of(SFTModule(spec, tokenizer=tokenizer), 48, 16, "32-true").parents == (-1, -1, -1)
    pairs = DPOModule(spec, tokenizer=tokenizer, loss=SimPOLoss())
    assert job_of(pairs, 48, 16, "32-true").parents == (-1, 0, 0, -1, 3, 3)
    assert job_of(pairs, 48, 32, "32-true", answers=3).parents == (-1, 0, 0, 0)


def test_mismatched_answers_run_without_a_gradient_in_a_forward_of_their_own() -> None:
    # Two prompts (of 4 and 2 tokens), with two answers and with one, and each with an answer of another prompt.
    tree = job(lengths=(4, 3, 5, 6, 2, 7, 8), parents=(-1, 0, 0, 0, -1, 4, 4), mismatched=True)
    assert tree.trained_rows == ((4, 3, 5, 2, 7), (-1, 0, 0, -1, 3))
    assert tree.untrained_rows == ((4, 6, 2, 8), (-1, 0, -1, 2))
    assert tree.tokens == 35
    alone = job(lengths=tree.trained_rows[0], parents=tree.trained_rows[1])
    # The second model sees all answers at once.
    forward: Any = forward_flops(alone.model)  # type: ignore[arg-type]
    apart = forward.on(segment_table(*tree.untrained_rows), 20, 20)
    once = forward.on(segment_table(tree.lengths, tree.parents), 35, 35)
    assert micro_batch_flops(replace(tree, reference_passes=1)) == micro_batch_flops(alone) + apart + once


def test_a_sampler_takes_its_share_beside_weights_and_state(total: int) -> None:
    plan = PlanReport(plain(), [Replicated(1)], Machine(1, 1, 1), memory=2**30, sampler=0.75)
    [peak] = plan.peaks
    assert plan.fits(peak)
    assert not replace(plan, memory=round(12 * total / 0.25)).fits(peak)  # weights and AdamW's state are 12 bytes each
    assert any(line.split()[:5] == ["while", "vLLM", "is", "awake", "0.75"] for line in plan.lines())


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.tokenizer_folder(tmp_path / "tokenizer")
    (tmp_path / "my.yaml").write_text(
        f"""
model:
  class_path: lion_lightning.SFTModule
  init_args: {{policy: {{config: {tiny.config()}}}, tokenizer: {{path: {tmp_path / "tokenizer"}}}}}
data:
  class_path: lion_lightning.SFTDataModule
  init_args: {{sources: [{{path: nothing.jsonl}}], max_length: 16, batch_size: 2}}
trainer: {{accelerator: gpu, devices: auto, precision: bf16-mixed}}
""".replace("'", '"')
        .replace("True", "true")
        .replace("False", "false")
    )
    return tmp_path / "my.yaml"


def test_the_command_prints_each_strategy(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fragment = Path(__file__).parents[3] / "configs" / "strategy" / "fsdp2.yaml"
    assert main(["plan", "-c", str(config), "-c", str(fragment), "--gpus", "4", "--memory", "2"]) == 0
    said = capsys.readouterr().out
    assert "32 tokens per micro-batch x 1 accumulated x 4 GPUs: up to 128 tokens" in said
    assert "fsdp (config's)" in said
    assert [line.split()[1:] for line in said.splitlines() if line.startswith("fits")] == [["NO", "NO", "NO"]]
    assert not list(config.parent.glob("lightning_logs"))


@pytest.mark.parametrize(("visible", "planned"), [(0, 1), (3, 3)])
def test_without_gpus_those_that_are_visible_are_planned_or_else_one(
    visible: int, planned: int, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible)
    assert main(["plan", "-c", str(config)]) == 0
    assert f"x 1 accumulated x {planned} GPUs" in capsys.readouterr().out


def test_a_round_s_groups_have_as_many_answers_as_are_sampled(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = Path(__file__).parents[3] / "configs" / "online_ranked.yaml"
    given = with_files_read(read_config_file(shipped), shipped.parent)
    own = yaml.safe_load(config.read_text())["model"]["init_args"]
    given["model"]["init_args"] |= own
    config.write_text(yaml.safe_dump(given))
    assert main(["plan", "-c", str(config), "--gpus", "1"]) == 0
    (sampling,) = [one for one in given["trainer"]["callbacks"] if one["class_path"].endswith("OnPolicySampling")]
    assert f"({sampling['init_args']['num_samples']} to a prompt)" in capsys.readouterr().out


def test_a_plan_says_how_many_answers_are_assumed() -> None:
    lengths, parents = trees(48, 32, 2)
    for mismatched, said in ((False, "(2 to a prompt)"), (True, "(1 to a prompt, and one of another)")):
        own = job(lengths=lengths, parents=parents, mismatched=mismatched)
        assert f"48 tokens per micro-batch {said} x 1" in "\n".join(
            PlanReport(own, [Replicated(1)], Machine(1, 1, 1), memory=2**30)._settings()
        )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--trainer.devices", "0,1"], "trainer.devices is 0,1: set the number of GPUs with --gpus N"),
        (["--gpus", "0"], "--gpus is 0; give 1 or more"),
        (["--gpus", "2", "--answers", "0"], "--answers is 0; give at least 1"),
        (["--gpus", "2", "--mfu", "0"], "--mfu is 0.0; give a number above 0"),
        (["--gpus", "2", "--trainer.strategy", "best"], "Lightning knows no 'best'"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    given: list[str], said: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "-c", str(config), *given]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lion: error")]
    assert len(lines) == 1
    assert said in lines[0]


def test_strategies_say_how_they_spread_a_model() -> None:
    views = DDPStrategy(gradient_as_bucket_view=True)
    assert [type(one) for one in placements(views, 2)] == [Replicated, Sharded, Offloaded]
    assert (placements(views, 2)[0], placements("ddp", 2)[0]) == (Replicated(2, bucket_views=True), Replicated(2))
    assert placements(FSDP2Strategy(cpu_offload=True), 2)[0] == Offloaded(2)
    assert placements("auto", 1) == [Replicated(1)]


def test_fsdps_own_activation_checkpointing_is_planned() -> None:
    own = plain()
    assert own.spec.recompute == "none"
    assert with_recompute_of(FSDPStrategy(), own) is own
    strategy = FSDPStrategy(activation_checkpointing_policy=WrapLayers())
    assert with_recompute_of(strategy, own).spec.recompute == "full"


def test_four_bits_are_not_sharded() -> None:
    assert placements("ddp", 2, packed=True) == [Replicated(2)]
    with pytest.raises(ValueError, match="4-bit weights are not sharded"):
        placements(FSDP2Strategy(), 2, packed=True)


def test_a_strategy_that_is_not_known_is_said() -> None:
    with pytest.raises(ValueError, match="the memory of object cannot be estimated"):
        placements(object(), 2)
    with pytest.raises(ValueError, match="memory under tensor parallelism cannot be estimated"):
        placements(FSDP2Strategy(tensor_parallel_size=2), 2)
