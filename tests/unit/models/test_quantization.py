"""Bases in four bits: refused where they cannot be had, close to the whole model, and trained by adapters alone."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lion_lightning import AdapterOffReference, CachedReference, DPOModule, PolicySpec, SFTModule, TokenizerSpec
from lion_lightning.callbacks import HuggingFaceExport
from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.checkpoints.export import export_checkpoint
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.quantization import NF4Spec, scales
from lion_lightning.models.weights.hash import hash_tensors
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore")

real = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: lion-lightning[qlora]")
SMOLLM2 = os.environ.get("LION_SMOLLM2", "")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (PolicySpec(path="model", quantization=NF4Spec()), "weights in 4 bits cannot learn; set policy.lora"),
        (PolicySpec(config=tiny.config(), quantization=NF4Spec(), lora=LoRASpec()), "needs policy.path"),
    ],
)
def test_what_cannot_be_held_in_four_bits_is_refused(spec: PolicySpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec.build()


def test_four_bits_are_not_sharded() -> None:
    with pytest.raises(ValueError, match="4-bit weights are not sharded"):
        NF4Spec().require(adapted=True, stored=True, split=object())


def test_settings_come_back_from_plain_mappings() -> None:
    spec = PolicySpec(path="model", lora=LoRASpec(), quantization={"double_quant": False})  # type: ignore[arg-type]
    assert spec.quantization == NF4Spec(double_quant=False)


def test_a_missing_bitsandbytes_is_one_line_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lion_lightning.models.quantization.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lion-lightning\[qlora\]'"):
        NF4Spec().config(torch.float32)


def stored(folder: Path, tied: bool = False) -> str:
    """A base whose matrices are large enough to be quantized in whole blocks."""
    torch.manual_seed(0)
    shape = tiny.config(hidden_size=64, intermediate_size=128, tie_word_embeddings=tied)
    PolicySpec(config=shape).build().causal_lm.save_pretrained(folder)
    return str(folder)


def built(path: str, quantization: NF4Spec | None, **changes: Any) -> PolicyModel:
    torch.manual_seed(1)
    return PolicySpec(path=path, lora=LoRASpec(r=4), quantization=quantization, **changes).build()


def dequantized(model: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    weight = model.model.layers[0].self_attn.q_proj.base_layer.weight
    return dequantize_4bit(weight.data, weight.quant_state)  # type: ignore[no-any-return]


@real
@pytest.mark.parametrize("double_quant", [False, True])
def test_linear_layers_are_held_in_four_bits_and_nothing_else_is(tmp_path: Path, double_quant: bool) -> None:
    path = stored(tmp_path / "base")
    policy, whole = built(path, NF4Spec(double_quant)), built(path, None)
    packed = {name: p for name, p in policy.named_parameters() if p.dtype == torch.uint8}
    # q and o, k and v, gate, up and down of two layers; two weights a byte
    assert sum(p.numel() for p in packed.values()) == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) // 2
    assert len(packed) == 14
    assert {p.dtype for name, p in policy.named_parameters() if name not in packed} == {torch.float32}
    assert policy.packed  # the probe holds four bits no worse than itself
    weight: Any = whole.causal_lm.get_submodule("model.layers.0.self_attn.q_proj.base_layer").weight
    # NF4's levels are at most 0.3 of a block's largest weight apart, so none is off by more than half of that and a bit
    largest = weight.detach().reshape(-1, 64).abs().amax(1, keepdim=True)
    assert ((dequantized(policy.causal_lm) - weight).reshape(-1, 64).abs() <= 0.17 * largest).all()


@real
def test_two_bases_that_differ_by_a_factor_have_digests_of_their_own(tmp_path: Path) -> None:
    path = stored(tmp_path / "base")
    digests = []
    for factor in (1.0, 2.0):
        model: Any = AutoModelForCausalLM.from_pretrained(path)
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.weight.mul_(factor)
        model.save_pretrained(tmp_path / str(factor))
        policy = built(str(tmp_path / str(factor)), NF4Spec(double_quant=False))
        layer: Any = policy.causal_lm.get_submodule("model.layers.0.self_attn.q_proj.base_layer")
        assert len(scales(layer.weight)) == 1
        digests.append((hash_tensors([("", layer.weight)]), layer.weight.data.clone()))
    assert torch.equal(digests[0][1], digests[1][1])
    assert digests[0][0] != digests[1][0]


@real
def test_a_product_in_bfloat16_still_runs_packed(tmp_path: Path) -> None:
    policy = built(stored(tmp_path / "base"), NF4Spec(compute_dtype="bfloat16"))
    assert policy.packed


@real
@pytest.mark.parametrize("recompute", ["none", "elementwise", "full"])
def test_only_adapters_learn_and_the_loss_goes_down(tmp_path: Path, recompute: str) -> None:
    policy = built(stored(tmp_path / "base"), NF4Spec(), recompute=recompute)
    learning = [p for p in policy.parameters() if p.requires_grad]
    optimizer, batch, losses = torch.optim.AdamW(learning, lr=1e-2), tiny.row(*tiny.TREE), []
    for _ in range(10):
        loss = -policy(batch).values.mean()
        loss.backward()
        assert {"lora_" in name for name, p in policy.named_parameters() if p.grad is not None} == {True}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]


@real
def test_a_run_resumes_bit_for_bit_and_exports_into_the_whole_base(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, tokenizer = stored(tmp_path / "base"), TokenizerSpec(str(tiny.tokenizer_folder(tmp_path / "tokenizer")))
    spec = PolicySpec(path=path, lora=LoRASpec(r=4), quantization=NF4Spec())

    def fit(steps: int, resume: Path | None) -> tuple[Path, DPOModule]:
        module = DPOModule(
            spec, tokenizer=tokenizer, reference=AdapterOffReference(), optimizer=partial(torch.optim.SGD, lr=0.1)
        )
        trainer = tiny.trainer(max_steps=steps, max_epochs=-1)
        trainer.fit(module, tiny.Rows([tiny.pairs((4, 5, 6))]), ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return tmp_path / f"{steps}.ckpt", module

    torch.manual_seed(1)
    start, _ = fit(2, None)
    (_, first), (last, second) = fit(4, start), fit(4, start)
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name
    content = torch.load(last, weights_only=True)
    assert all(".lora_" in name for name in content["state_dict"])
    merged: Any = AutoModelForCausalLM.from_pretrained(export_checkpoint(last, tmp_path / "out"))
    assert "in 4 bits" in caplog.text
    base: Any = AutoModelForCausalLM.from_pretrained(path)
    layer = "model.layers.0.self_attn.q_proj"
    a, b = (content["state_dict"][f"policy.model.base_model.model.{layer}.lora_{side}.default.weight"] for side in "AB")
    expected = base.get_submodule(layer).weight + 32 / 4 * b @ a
    torch.testing.assert_close(merged.get_submodule(layer).weight, expected, rtol=1e-5, atol=1e-6)
    assert not hasattr(merged.config, "quantization_config")


def with_the_same_weights(policy: PolicyModel, path: str) -> PolicyModel:
    """The policy with its weights brought back from four bits once and for all, and multiplied by torch alone."""
    from bitsandbytes.functional import dequantize_4bit

    whole = built(path, None)
    with torch.no_grad():
        for name, weight in policy.causal_lm.named_parameters():
            if (state := getattr(weight, "quant_state", None)) is not None:
                whole.causal_lm.get_parameter(name).copy_(dequantize_4bit(weight.data, state))
    return whole


@real
def test_log_probs_are_those_of_the_rounded_weights(tmp_path: Path) -> None:
    path = stored(tmp_path / "base", tied=True)
    policy, batch = built(path, NF4Spec()), tiny.row(*tiny.TREE)
    with torch.no_grad():
        expected = with_the_same_weights(policy, path)(batch).values
        torch.testing.assert_close(policy(batch).values, expected, rtol=1e-4, atol=1e-4)


@real
@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2, reason="set LION_SMOLLM2 to a folder with SmolLM2-135M-Instruct")
def test_smollm2_in_four_bits_is_its_rounded_self_and_learns() -> None:
    text = (Path(__file__).parents[3] / "LICENSE").read_text("utf-8")
    ids = torch.tensor(TokenizerSpec(SMOLLM2).load()(text).input_ids[:512])
    batch = replace(tiny.row((512,), (-1,)), input_ids=ids, targets=ids[1:])
    policy, whole = built(SMOLLM2, NF4Spec()), built(SMOLLM2, None)
    with torch.no_grad():
        own, original = policy(batch).values, whole(batch).values
        rounded = with_the_same_weights(policy, SMOLLM2)(batch).values
    del whole
    print("off by", (own - original).abs().mean(), "loss", -own.mean(), -original.mean())
    torch.testing.assert_close(own, rounded, rtol=1e-3, atol=1e-3)
    assert 0 < (original - own).mean() < 0.4  # nats a token: 0.30 measured, so small a model suffers
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(4):
        loss = -policy(batch).values.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    print("losses", losses)
    assert losses[-1] < losses[0] - 0.1


@real
def test_the_export_at_the_end_of_a_fit_needs_no_checkpoint(tmp_path: Path) -> None:
    path, tokenizer = stored(tmp_path / "base"), TokenizerSpec(str(tiny.tokenizer_folder(tmp_path / "tokenizer")))
    spec = PolicySpec(path=path, lora=LoRASpec(r=4), quantization=NF4Spec())
    module = SFTModule(spec, tokenizer=tokenizer, optimizer=partial(torch.optim.SGD, lr=0.1))
    trainer = tiny.trainer(max_steps=2, callbacks=[HuggingFaceExport(str(tmp_path / "out"))])
    trainer.fit(module, tiny.Rows([tiny.row(), tiny.row(seed=1)]))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = AutoModelForCausalLM.from_pretrained(export_checkpoint(tmp_path / "last.ckpt", tmp_path / "again"))
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for (name, one), other in zip(written.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name


@real
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]], ids=["all layers", "some layers"])
def test_samplers_get_the_values_that_four_bits_stand_for(tmp_path: Path, targets: Any) -> None:
    base = stored(tmp_path / "base")
    torch.manual_seed(1)
    policy = PolicySpec(path=base, lora=LoRASpec(r=4, target_modules=targets), quantization=NF4Spec()).build()
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    served = RolloutPolicy(policy.eval(), TokenizerSpec(str(tiny.tokenizer_folder(tmp_path / "tokenizer"))).load())
    served.write(tmp_path / "merged")
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([[3, 4, 5, 6]])
    torch.testing.assert_close(plain(ids).logits, policy.causal_lm(ids).logits, rtol=1e-4, atol=1e-4)
    assert served.adapters is not None
    plain.load_state_dict(dict(served.adapters.base()))
    with policy.model.disable_adapter():  # type: ignore[operator]
        torch.testing.assert_close(plain(ids).logits, policy.causal_lm(ids).logits, rtol=1e-4, atol=1e-4)


@real
def test_a_cached_reference_keeps_the_log_probs_of_the_base_in_four_bits(tmp_path: Path) -> None:
    policy, batch = built(stored(tmp_path / "base"), NF4Spec()), tiny.pairs((4, 5, 6))
    reference = CachedReference(cache_dir=tmp_path / "cache")
    reference.attach(policy, lambda spec: policy)
    reference.precompute([batch], policy, Ranks(), "training")
    with torch.no_grad(), policy.adapters_off():
        assert torch.equal(reference(batch, policy).values, policy(batch).values)
