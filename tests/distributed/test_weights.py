"""Weights of a policy that two ranks share: whole ones are those of one process, and nobody holds them all at once."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from lion_lightning.callbacks.export import _weights
from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.dtensor import to_local
from lion_lightning.sampling import MergedWeightSync
from tests import tiny
from tests.distributed.ranks import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

CASES: dict[str, tuple[LoRASpec | None, list[int]]] = {
    "plain": (None, []),
    "lora": (LoRASpec(r=4), []),
    "saved": (LoRASpec(r=4, modules_to_save=["lm_head"]), []),
    "rows": (LoRASpec(r=4), [5, 7]),
}


def policy(case: str, tied: bool, layers: int = 2) -> PolicyModel:
    """A random policy whose adapters, and what is trained beside them, have moved."""
    lora, rows = CASES[case]
    torch.manual_seed(0)
    config = PolicySpec(config=tiny.config(tie_word_embeddings=tied, num_hidden_layers=layers)).load_config()
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config)
    made = PolicyModel(model if lora is None else lora.apply(model, rows))
    with torch.no_grad():
        for parameter in made.parameters():
            if lora is not None and parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def sharded(made: PolicyModel) -> PolicyModel:
    for layer in made.causal_lm.model.layers:
        fully_shard(layer)
    fully_shard(made)
    return made


def expected(made: PolicyModel) -> dict[str, torch.Tensor]:
    """The definition: peft's own merging of the whole model."""
    copy: Any = deepcopy(made.model)
    return dict((copy.merge_and_unload() if hasattr(copy, "merge_and_unload") else copy).state_dict())


def compare(rank: int, world: int, folder: Path) -> Any:
    dist.init_process_group("gloo")
    tokenizer = TokenizerSpec(str(folder)).load()
    results = {}
    for case in CASES:
        for tied in (True, False):
            whole = policy(case, tied)
            wanted, single = expected(whole), RolloutPolicy(whole, tokenizer)
            digests = single.digest(), single.adapters and single.adapters.digest()
            served = RolloutPolicy(sharded(policy(case, tied)), tokenizer, Ranks(rank, world))
            before = {name: to_local(value).clone() for name, value in served.policy.named_parameters()}
            given = dict(served.weights())
            out = folder / f"{case}-{tied}"
            served.write(out if rank == 0 else None)
            if served.adapters is not None:
                served.adapters.write(out / "adapter" if rank == 0 else None)
            results[case, tied] = {
                "names": list(given) == list(wanted),
                "off by": max(float((given[name] - wanted[name]).abs().max()) for name in wanted),
                "digests": (served.digest(), served.adapters and served.adapters.digest()) == digests,
                "untouched": all(torch.equal(before[n], to_local(p)) for n, p in served.policy.named_parameters()),
            }
    return results


def test_gathered_and_merged_weights_are_those_of_one_process(tmp_path: Path) -> None:
    tiny.tokenizer_folder(tmp_path)
    ids = torch.tensor([[3, 4, 5, 6]])
    for result in run_ranks(compare, tmp_path, tmp_path):
        assert len(result) == 8
        for checks in result.values():
            assert checks.pop("off by") <= 1e-6
            assert all(checks.values()), checks
    for case in CASES:
        for tied in (True, False):
            one = policy(case, tied).eval()
            logits = one.causal_lm(ids).logits
            out = tmp_path / f"{case}-{tied}"
            assert torch.allclose(AutoModelForCausalLM.from_pretrained(out)(ids).logits, logits, atol=1e-5)
            assert (out / "adapter" / "adapter_model.safetensors").exists() == (case == "lora")
        base = RolloutPolicy(policy("lora", tied), TokenizerSpec(str(tmp_path)).load())
    from peft import PeftModel

    plain = policy("plain", False)
    assert base.adapters is not None
    plain.causal_lm.load_state_dict(dict(base.adapters.base()))
    adapted = PeftModel.from_pretrained(plain.causal_lm, str(tmp_path / "lora-False" / "adapter")).eval()
    assert torch.allclose(adapted(ids).logits, base.policy.eval().causal_lm(ids).logits, atol=1e-6)


def peaks(rank: int, world: int, folder: Path) -> Any:
    dist.init_process_group("gloo")
    tokenizer, most = TokenizerSpec(str(folder)).load(), {}
    for case in CASES:
        served = RolloutPolicy(sharded(policy(case, tied=False, layers=12)), tokenizer, Ranks(rank, world))
        with tiny.LiveTensors().count(served.policy) as live:
            run(served.weights())
        with tiny.LiveTensors().count(served.policy) as hashing:
            served.digest()
        most[case] = max(live.most, hashing.most)
    return {"most": most, "kept": len(_weights(served.policy, kept=rank == 0)), "all": len(served.model.state_dict())}


def run(weights: Iterator[Any]) -> None:
    for _ in weights:
        pass


def test_nobody_holds_more_than_a_few_tensors(tmp_path: Path) -> None:
    tiny.tokenizer_folder(tmp_path)
    model = policy("plain", tied=False, layers=12)
    largest = max(p.nbytes for p in model.parameters())
    results = run_ranks(peaks, tmp_path, tmp_path)
    for result in results:
        assert len(result["most"]) == 4
        assert max(result["most"].values()) <= 6 * largest  # the tensor, what it is gathered from, copies
    assert sum(p.nbytes for p in model.parameters()) > 20 * largest
    assert [result["kept"] for result in results] == [results[0]["all"], 0]


class Fails:
    """An engine that gives up after two weights."""

    def collective_rpc(self, method: str, kwargs: Any) -> None:
        next(kwargs["weights_iterator"])
        next(kwargs["weights_iterator"])
        raise RuntimeError("out of memory")


class Takes(Fails):
    def collective_rpc(self, method: str, kwargs: Any) -> None:
        run(kwargs["weights_iterator"])

    def reset_prefix_cache(self) -> None:
        pass


def unlucky(rank: int, world: int, folder: Path) -> Any:
    dist.init_process_group("gloo")
    served = RolloutPolicy(sharded(policy("lora", tied=False)), TokenizerSpec(str(folder)).load(), Ranks(rank, world))

    def pushed() -> None:
        with served.ranks.together():
            MergedWeightSync().push(Fails() if rank else Takes(), served)

    blocked = folder / "file"
    if rank == 0:
        blocked.write_text("in the way")
    said = []
    for go in (pushed, lambda: served.write(blocked if rank == 0 else None)):
        try:
            go()
        except (OSError, RuntimeError) as error:
            said.append(f"{type(error).__name__}: {error}")
    return [*said, len(dict(served.weights()))]


def test_an_engine_or_a_disk_that_fails_is_the_failure_of_all(tmp_path: Path) -> None:
    tiny.tokenizer_folder(tmp_path)
    first, second = run_ranks(unlucky, tmp_path, tmp_path)
    other = "OSError: another rank has failed; its own message says why"
    assert first[0] == other
    assert "File exists" in first[1]
    assert second == ["RuntimeError: out of memory", other, 21]
    assert first[2] == 21
