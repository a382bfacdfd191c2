"""The load-balancing loss: values by the equations, over ranks and accumulation, in every family with a router."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.optim import SGD
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from lion_lightning.models.packing.routers import Routing, routers_of
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules import SFTModule
from lion_lightning.modules.optimization.expert_balance import ExpertBalance, load_balancing_loss
from lion_lightning.types import LossOutput, PackedBatch
from tests.families import family
from tests.marks import slow
from tests.tiny import Rows, row, tokenizer_folder, trainer

ROWS = (row((7, 5, 9, 4), (-1, -1, -1, -1), seed=1), row((6, 3), (-1, -1), seed=2))


class Summed:
    """A strategy of several ranks which all route alike."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def reduce(self, value: Tensor, group: Any, reduce_op: str) -> Tensor:
        assert reduce_op == "sum"
        return value * self.ranks


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerSpec:
    return TokenizerSpec(str(tokenizer_folder(Path(tmp_path_factory.mktemp("tokenizer")))))


def module(tokenizer: TokenizerSpec, name: str = "mixtral", coefficient: float = 0.5, **shape: Any) -> SFTModule:
    torch.manual_seed(0)
    made = SFTModule(
        PolicySpec(config=family(name, **shape)),
        tokenizer=tokenizer,
        optimizer=lambda groups: SGD(groups, lr=1.0),
        router_aux_loss_coef=coefficient,
    )
    made.configure_model()
    return made


def routing(made: SFTModule, batch: PackedBatch) -> list[tuple[Tensor, Tensor]]:
    """Logits and choices of each router for a row, straight from the plain model, document by document."""
    model, seen = made.policy_model.causal_lm, []
    hooks = [
        router.register_forward_hook(lambda _, __, output: seen.append((output[0], output[2])))
        for router, _ in routers_of(model)
    ]
    for segment in batch.segments:
        model(input_ids=batch.input_ids[segment.start : segment.stop][None], use_cache=False)
    for hook in hooks:
        hook.remove()
    layers = len(hooks)
    return [
        (torch.cat([logits for logits, _ in seen[layer::layers]]), torch.cat([c for _, c in seen[layer::layers]]))
        for layer in range(layers)
    ]


def test_the_loss_is_the_experts_times_the_sum_of_fractions_times_probabilities() -> None:
    # 4 experts, 2 per token: all tokens to the first two, whose probabilities are 0.4 each
    assert load_balancing_loss(torch.tensor([0.4, 0.4, 0.1, 0.1]), torch.tensor([1.0, 1.0, 0.0, 0.0])) == pytest.approx(
        4 * (0.4 + 0.4)
    )
    even = torch.full((4,), 0.25)
    assert load_balancing_loss(even, 2 * even) == pytest.approx(2.0)  # the number of experts per token


@pytest.mark.parametrize("name", ["mixtral", *slow("qwen3_moe", "olmoe", "gpt_oss", "qwen3_next")])
def test_a_step_of_one_row_and_one_layer_has_the_loss_of_transformers(tokenizer: TokenizerSpec, name: str) -> None:
    layers = {"num_hidden_layers": 1} if name != "qwen3_next" else {"num_hidden_layers": 1, "layer_types": None}
    made = module(tokenizer, name, **layers)
    ((logits, _),) = routing(made, ROWS[0])
    expected = load_balancing_loss_func((logits,), logits.shape[1], 2)
    run = trainer(max_steps=1)
    run.fit(made, Rows(ROWS[:1]))
    assert run.callback_metrics["train/router_aux_loss"].item() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", *slow("qwen3_moe", "olmoe", "glm4_moe", "gpt_oss")])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_a_step_of_two_rows_moves_weights_by_the_loss_with_loads_counted_so_far(
    tokenizer: TokenizerSpec, name: str, packed: bool
) -> None:
    made = module(tokenizer, name)
    made.policy_model.packed = packed
    if not packed:
        made.policy_model.causal_lm.set_attn_implementation("eager")
    model = made.policy_model.causal_lm
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    total, items, loads, losses = torch.zeros(()), 0, 0.0, []
    for number, batch in enumerate(ROWS):
        found = routing(made, batch)
        counts = [torch.nn.functional.one_hot(chosen, 4).sum((0, 1)).float() for _, chosen in found]
        loads = counts if number == 0 else [sum(pair) for pair in zip(loads, counts, strict=True)]  # type: ignore
        balance = sum(
            4 * (2 * load / load.sum() * logits.float().softmax(-1).mean(0)).sum()
            for load, (logits, _) in zip(loads, found, strict=True)  # type: ignore[call-overload]
        ) / len(found)
        losses.append(float(balance) * len(batch.targets))
        total = total - made.policy_model(batch).values.sum() + 0.5 * len(batch.targets) * balance
        items += len(batch.targets)
    made.policy_model.record_routers().take()
    gradients = torch.autograd.grad(total / items, [*model.parameters()], allow_unused=True)

    run = trainer(max_steps=1, accumulate_grad_batches=2)
    run.fit(made, Rows(ROWS))
    for (key, value), gradient in zip(model.named_parameters(), gradients, strict=True):
        moved = start[key] if gradient is None else start[key] - gradient
        torch.testing.assert_close(value, moved, rtol=0, atol=2e-5, msg=key)
    assert run.callback_metrics["train/router_aux_loss"].item() == pytest.approx(sum(losses) / items, rel=1e-5)
    largest = max(float(load.max() / load.mean()) for load in loads)  # type: ignore[attr-defined]
    assert run.callback_metrics["train/expert_load_max"].item() == pytest.approx(largest, rel=1e-6)


def test_loads_are_summed_over_ranks_and_steps_start_anew() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    first = [(logits, torch.tensor([[0], [1]]))]
    second = [(logits, torch.tensor([[0], [0]]))]
    balance = ExpertBalance(0.1)
    output = LossOutput(torch.tensor(5.0), torch.tensor(4.0))
    added: Any = balance.add(output, _routings(first), Summed(3))  # type: ignore[arg-type]
    high, low = (torch.tensor([2.0, 0.0, 0.0]).softmax(0)[:2]).tolist()
    mean = [(high + low) / 2, (high + low) / 2, low]
    assert added.metrics["router_aux_loss"].item() == pytest.approx(4 * 3 * (0.5 * mean[0] + 0.5 * mean[1]))
    assert added.total.item() == pytest.approx(5 + 0.1 * added.metrics["router_aux_loss"].item())
    added = balance.add(output, _routings(second), Summed(3))  # type: ignore[arg-type]
    assert added.metrics["router_aux_loss"].item() == pytest.approx(4 * 3 * (0.75 * mean[0] + 0.25 * mean[1]))
    assert balance.end_step().item() == pytest.approx(3 * 0.75)
    # without items (a rank that only keeps step) a row counts for nothing
    added = balance.add(LossOutput(torch.tensor(0.0), torch.tensor(0.0)), _routings(first), Summed(1))  # type: ignore
    assert added.total.item() == 0
    assert balance.end_step().item() == 0


def _routings(pairs: list[tuple[Tensor, Tensor]]) -> Any:
    return [Routing(*pair) for pair in pairs]


@pytest.mark.parametrize("recompute", ["full", "elementwise"])
def test_recomputation_records_each_row_once(tokenizer: TokenizerSpec, recompute: Any) -> None:
    torch.manual_seed(0)
    policy = PolicySpec(config=family("mixtral"), recompute=recompute).build()
    recorder = policy.record_routers()
    values = policy(ROWS[0]).values
    taken = recorder.take()
    assert [len(routing.logits) for routing in taken] == [25, 25]
    torch.autograd.backward(values.sum() + sum(routing.logits.softmax(-1)[:, 0].sum() for routing in taken))
    assert not recorder.take()
    with torch.no_grad():  # a reference with adapters off, or evaluation
        policy(ROWS[0])
    assert not recorder.take()


class Stop(Callback):
    """Stops a run behind its first micro-batch, in the middle of a step."""

    def on_train_batch_end(self, *args: Any) -> None:
        raise RuntimeError("stop")


def test_a_run_after_one_that_was_stopped_within_a_step_counts_its_own_items_and_loads(
    tokenizer: TokenizerSpec,
) -> None:
    whole, again = module(tokenizer), module(tokenizer)
    with pytest.raises(RuntimeError, match="stop"):
        trainer(max_steps=1, accumulate_grad_batches=2, callbacks=[Stop()]).fit(again, Rows(ROWS))
    runs = [trainer(max_steps=1, accumulate_grad_batches=2) for _ in range(2)]
    for run, made in zip(runs, (whole, again), strict=True):
        run.fit(made, Rows(ROWS))
    assert runs[0].callback_metrics == runs[1].callback_metrics
    for expected, value in zip(whole.policy_model.parameters(), again.policy_model.parameters(), strict=True):
        assert torch.equal(value, expected)


def test_a_coefficient_for_a_model_without_experts_is_one_line(tokenizer: TokenizerSpec) -> None:
    with pytest.raises(ValueError, match="router_aux_loss_coef: LlamaForCausalLM has no router of experts"):
        module(tokenizer, "llama")
    with pytest.raises(ValueError, match="router_aux_loss_coef is -1"):
        module(tokenizer, coefficient=-1)


@pytest.mark.parametrize(
    "name", ["mixtral", *slow("qwen3_moe", "olmoe", "gpt_oss", "qwen3_next", "deepseek_v3", "glm4_moe")]
)
def test_routers_are_found_by_transformers_own_table(name: str) -> None:
    model = PolicySpec(config=family(name)).build().causal_lm
    layers = {"qwen3_next": 4, "deepseek_v3": 1, "glm4_moe": 1}.get(name, 2)  # the first layer of the last two is dense
    assert [index for _, index in routers_of(model)] == [0] * layers
