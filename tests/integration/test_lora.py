"""LoRA from a stored base: small checkpoints, exact resume, a base that is known again, merged and plain exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from transformers import AutoModelForCausalLM

from lion_lightning import AdapterOffReference, DPOModule, FrozenReference, MixedReference, PolicySpec, TokenizerSpec
from lion_lightning.cli import main
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.models.checkpoints.export import export_checkpoint
from lion_lightning.models.lora import LoRASpec
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.modules.sft import SFTModule
from lion_lightning.references.base import Reference
from lion_lightning.types import Sample, SampleSegment
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore")

SLOW, EXHAUSTIVE = pytest.mark.slow, pytest.mark.exhaustive
PREFIX = "policy.model."
# r * inputs + outputs * r of q, k, v, o, gate, up and down, with r = 4, in two layers
ADAPTER_ELEMENTS = 2 * 4 * sum((32 + 32, 32 + 16, 32 + 16, 32 + 32, 32 + 48, 32 + 48, 48 + 32))
ADAPTER_KEYS = 2 * 7 * 2  # layers, linear layers, A and B


def store(folder: Path, seed: int = 0, dtype: str = "float32", tied: bool = False, rows: int = tiny.VOCABULARY) -> Path:
    """A base model of random weights in a folder."""
    torch.manual_seed(seed)
    shape = tiny.config(tie_word_embeddings=tied, vocab_size=rows)
    PolicySpec(config=shape, dtype=dtype).build().causal_lm.save_pretrained(folder)  # type: ignore[arg-type]
    return folder


class Bench:
    """Makes modules and runs over one stored base."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = store(folder / "base")
        self.tokenizer = TokenizerSpec(str(tiny.tokenizer_folder(folder / "tokenizer")))

    def sft(self, seed: int = 7, **changes: Any) -> SFTModule:
        torch.manual_seed(seed)
        spec = PolicySpec(path=str(self.base), lora=LoRASpec(r=4, dropout=0.1), **changes)
        return SFTModule(spec, tokenizer=self.tokenizer, optimizer=partial(torch.optim.AdamW, lr=1e-2))

    def dpo(self, reference: Reference, seed: int = 7) -> DPOModule:
        torch.manual_seed(seed)
        spec = PolicySpec(path=str(self.base), lora=LoRASpec(r=4))
        adam = partial(torch.optim.AdamW, lr=1e-2)
        return DPOModule(spec, tokenizer=self.tokenizer, reference=reference, optimizer=adam)

    def fit(self, module: AlignmentModule, name: str, steps: int, resume: Path | None = None) -> Path:
        """Train up to a step, and save there."""
        saver = ModelCheckpoint(self.folder / name, save_last=True, every_n_train_steps=2)
        trainer = tiny.trainer(max_steps=steps, max_epochs=-1, callbacks=[saver], enable_checkpointing=True)
        trainer.fit(module, self.loader(isinstance(module, DPOModule)), ckpt_path=resume)
        return self.folder / name / "last.ckpt"

    def loader(self, pairs: bool) -> PackedLoader:
        """Six rows of random tokens, in batches of one row."""
        rng = np.random.default_rng(1)

        def piece(parent: int, supervised: bool) -> SampleSegment:
            return SampleSegment(rng.integers(3, tiny.VOCABULARY, 6).astype(np.int32), np.full(6, supervised), parent)

        shape = ((-1, False), (0, True), (0, True)) if pairs else ((-1, True),)
        joined = ((0, 1),) if pairs else ()
        samples = [Sample(tuple(piece(*part) for part in shape), number, pairs=joined) for number in range(6)]
        lengths = np.array([sample.length for sample in samples])
        return PackedLoader(samples, lengths, capacity=int(lengths[0]), batch_size=1, shuffle=True)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def read(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, weights_only=True))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(input_ids=torch.arange(3, 60)[None]).logits
    return result


def test_a_checkpoint_holds_the_adapters_their_moments_and_no_more(bench: Bench) -> None:
    content = read(bench.fit(bench.sft(), "run", 2))
    assert len(content["state_dict"]) == ADAPTER_KEYS
    assert all(name.startswith(PREFIX) and ".lora_" in name for name in content["state_dict"])
    assert sum(tensor.nbytes for tensor in content["state_dict"].values()) == 4 * ADAPTER_ELEMENTS
    moments = [value for state in content["optimizer_states"][0]["state"].values() for value in state.values()]
    assert sum(value.numel() for value in moments if value.dim()) == 2 * ADAPTER_ELEMENTS
    assert len(content["lion"]["base"]) == 40


def test_a_policy_of_random_weights_keeps_whole_checkpoints(bench: Bench) -> None:
    module = SFTModule(PolicySpec(config=tiny.config(), lora=LoRASpec(r=4)), tokenizer=bench.tokenizer)
    content = read(bench.fit(module, "run", 2))
    assert content["state_dict"].keys() == module.state_dict().keys()
    assert "base" not in content["lion"]


KINDS: dict[str, Callable[[Bench, int], AlignmentModule]] = {
    "sft": lambda bench, seed: bench.sft(seed),
    "adapters off": lambda bench, seed: bench.dpo(AdapterOffReference(), seed),
    "frozen": lambda bench, seed: bench.dpo(FrozenReference(), seed),
    "mixed": lambda bench, seed: bench.dpo(MixedReference(0.5), seed),
}


@pytest.mark.parametrize(
    "kind",
    [
        "sft",
        pytest.param("adapters off", marks=SLOW),
        pytest.param("frozen", marks=EXHAUSTIVE),
        pytest.param("mixed", marks=EXHAUSTIVE),
    ],
)
def test_a_run_resumed_from_adapters_ends_as_one_that_was_not_stopped(bench: Bench, kind: str) -> None:
    whole = read(bench.fit(KINDS[kind](bench, 7), "whole", 4))
    path = bench.fit(KINDS[kind](bench, 7), "stopped", 2)
    module = KINDS[kind](bench, 8)  # other adapters, until it loads those of the checkpoint
    resumed = read(bench.fit(module, "stopped", 4, resume=path))
    copies = 2 if kind in ("frozen", "mixed") else 1
    assert len(whole["state_dict"]) == copies * ADAPTER_KEYS
    assert all(torch.equal(resumed["state_dict"][name], tensor) for name, tensor in whole["state_dict"].items())
    assert resumed["state_dict"].keys() == whole["state_dict"].keys()
    assert resumed["lion"]["base"] == whole["lion"]["base"]
    assert resumed["global_step"] == 4


def test_load_from_checkpoint_gives_the_trained_model_and_warns_of_nothing(
    bench: Bench, recwarn: pytest.WarningsRecorder
) -> None:
    module = bench.sft()
    path = bench.fit(module, "run", 2)
    recwarn.clear()
    loaded = SFTModule.load_from_checkpoint(path, map_location="cpu")
    assert not [warning for warning in recwarn if "state dict" in str(warning.message)]
    torch.testing.assert_close(logits(loaded.policy_model.model), logits(module.policy_model.model), rtol=0, atol=0)


@SLOW
def test_an_older_checkpoint_that_holds_its_base_still_loads(bench: Bench) -> None:
    module = bench.sft()
    path = bench.fit(module, "run", 2)
    content = read(path)
    content["state_dict"] = {f"policy.{name}": value for name, value in module.policy_model.state_dict().items()}
    content["lion"].pop("base")
    torch.save(content, path)
    store(bench.base, seed=1)  # another base is then of no matter
    loaded = SFTModule.load_from_checkpoint(path, map_location="cpu")
    torch.testing.assert_close(logits(loaded.policy_model.model), logits(module.policy_model.model), rtol=0, atol=0)


def test_a_base_that_has_changed_or_gone_is_one_line_with_the_fix(bench: Bench) -> None:
    path = bench.fit(bench.sft(), "run", 2)
    moved = bench.base.rename(bench.folder / "moved")
    for doing in (
        partial(export_checkpoint, path, bench.folder / "out"),
        partial(bench.fit, bench.sft(), "run", 4, path),
    ):
        with pytest.raises(ValueError, match=str(bench.base)) as gone:
            doing()
        assert "\n" not in str(gone.value)
    store(bench.base, seed=1)
    for doing in (
        partial(export_checkpoint, path, bench.folder / "out"),
        partial(bench.fit, bench.sft(), "run", 4, path),
    ):
        with pytest.raises(ValueError, match=f"{bench.base} has changed .*--model.policy.path DIR"):
            doing()
    assert main(["export", str(path), str(bench.folder / "out"), "--base", str(moved)]) == 0
    bench.base = moved
    assert read(bench.fit(bench.sft(), "run", 4, resume=path))["global_step"] == 4


def test_weights_that_are_missing_beside_the_base_are_refused(bench: Bench) -> None:
    path = bench.fit(bench.sft(), "run", 2)
    content = read(path)
    lost = next(iter(content["state_dict"]))
    del content["state_dict"][lost]
    torch.save(content, path)
    with pytest.raises(ValueError, match="do not fit the module: missing"):
        SFTModule.load_from_checkpoint(path)
    with pytest.raises(ValueError, match="do not fit the model: missing"):
        export_checkpoint(path, bench.folder / "out")


def trained(
    bench: Bench, spec: PolicySpec, special_tokens: tuple[str, ...] = (), name: str = "run"
) -> tuple[Path, SFTModule]:
    """A checkpoint of adapters that are far from where they began."""
    tokenizer = TokenizerSpec(bench.tokenizer.path, special_tokens=special_tokens)
    module = SFTModule(spec, tokenizer=tokenizer, optimizer=partial(torch.optim.AdamW, lr=0.0))
    module.configure_model()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return bench.fit(module, name, 2), module


NEW = ("<a>", "<b>")


@pytest.mark.parametrize(
    ("tied", "whole", "new_tokens"),
    [
        (False, [], ()),
        (True, ["lm_head"], NEW),
        pytest.param(True, [], NEW, marks=SLOW),
        pytest.param(False, [], NEW, marks=EXHAUSTIVE),
        pytest.param(False, ["lm_head"], NEW, marks=EXHAUSTIVE),
        pytest.param(True, ["embed_tokens"], (), marks=SLOW),
    ],
)
def test_merged_logits_equal_the_trained_models(
    bench: Bench, tied: bool, whole: list[str], new_tokens: tuple[str, ...]
) -> None:
    store(bench.base, tied=tied)
    spec = PolicySpec(path=str(bench.base), lora=LoRASpec(r=4, modules_to_save=whole))
    path, module = trained(bench, spec, new_tokens)
    merged: Any = AutoModelForCausalLM.from_pretrained(export_checkpoint(path, bench.folder / "out"))
    expected = logits(module.policy_model.model)
    assert expected.shape[-1] == tiny.VOCABULARY + len(new_tokens)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied
    largest = float(expected.abs().max())
    assert float((logits(merged) - expected).abs().max()) < 1e-5 * max(1.0, largest)
    untrained: Any = AutoModelForCausalLM.from_pretrained(bench.base)
    assert float((logits(untrained) - expected[..., : tiny.VOCABULARY]).abs().max()) > 0.1 * largest


@pytest.mark.slow
def test_a_half_precision_base_is_merged_in_fp32_and_rounded_once(bench: Bench) -> None:
    store(bench.base, dtype="bfloat16")
    path, _ = trained(bench, PolicySpec(path=str(bench.base), dtype="bfloat16", lora=LoRASpec(r=4, alpha=8.0)))
    merged: Any = AutoModelForCausalLM.from_pretrained(export_checkpoint(path, bench.folder / "out"))
    base: Any = AutoModelForCausalLM.from_pretrained(bench.base, dtype=torch.float32)
    state = read(path)["state_dict"]
    layer = "model.layers.1.self_attn.q_proj"
    a, b = (state[f"{PREFIX}base_model.model.{layer}.lora_{side}.default.weight"].float() for side in "AB")
    expected = base.get_submodule(layer).weight + 8 / 4 * b @ a
    assert merged.get_submodule(layer).weight.dtype == torch.bfloat16
    assert torch.equal(merged.get_submodule(layer).weight, expected.bfloat16())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tied", "whole"),
    [
        (True, ["lm_head"]),
        pytest.param(True, [], marks=SLOW),
        pytest.param(False, [], marks=EXHAUSTIVE),
        pytest.param(False, ["lm_head"], marks=EXHAUSTIVE),
    ],
)
def test_a_peft_folder_loads_onto_the_base_with_equal_logits(bench: Bench, tied: bool, whole: list[str]) -> None:
    from peft import PeftModel

    store(bench.base, tied=tied)
    path, module = trained(bench, PolicySpec(path=str(bench.base), lora=LoRASpec(r=4, modules_to_save=whole)))
    assert main(["export", str(path), str(bench.folder / "out"), "--adapter"]) == 0
    assert not (bench.folder / "out" / "model.safetensors").exists()
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bench.base), str(bench.folder / "out"))
    torch.testing.assert_close(logits(loaded), logits(module.policy_model.model), rtol=1e-5, atol=1e-5)


@SLOW
def test_a_peft_folder_holds_the_rows_of_new_tokens_where_the_base_has_room_for_them(bench: Bench) -> None:
    from peft import PeftModel

    store(bench.base, rows=tiny.VOCABULARY + 27)
    path, module = trained(bench, PolicySpec(path=str(bench.base), lora=LoRASpec(r=4)), ("<a>", "<b>"))
    folder = export_checkpoint(path, bench.folder / "out", adapter=True)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bench.base), str(folder))
    torch.testing.assert_close(logits(loaded), logits(module.policy_model.model), rtol=1e-5, atol=1e-5)


@SLOW
def test_adapters_that_cannot_stand_alone_are_refused(bench: Bench) -> None:
    path, _ = trained(bench, PolicySpec(path=str(bench.base), lora=LoRASpec(r=4)), ("<a>", "<b>"), "grown")
    with pytest.raises(ValueError, match="the base model has 101 rows of embeddings and needs 103"):
        export_checkpoint(path, bench.folder / "out", adapter=True)
    for spec in (PolicySpec(config=tiny.config(), lora=LoRASpec(r=4)), PolicySpec(path=str(bench.base))):
        path, _ = trained(bench, spec, name="no base" if spec.path is None else "no lora")
        with pytest.raises(ValueError, match="no adapters on a model with a path"):
            export_checkpoint(path, bench.folder / "out", adapter=True)


@SLOW
@pytest.mark.parametrize(
    "name",
    [
        "lora",
        pytest.param("qlora", marks=pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")),
    ],
)
def test_the_fragments_train_resume_and_export_from_the_command_line(bench: Bench, name: str) -> None:
    rows = [{"instruction": "w3", "output": f"w4 w{number}"} for number in range(5, 9)]
    (bench.folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = {"policy": {"path": str(bench.base)}, "tokenizer": {"path": bench.tokenizer.path}}
    data = {"sources": [{"path": str(bench.folder / "rows.jsonl")}], "max_length": 16}
    every = {"dirpath": str(bench.folder / "ckpt"), "every_n_train_steps": 1, "save_last": True}
    saver = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": every}
    quiet = {"accelerator": "cpu", "logger": False, "default_root_dir": str(bench.folder), "callbacks": [saver]}
    config = {
        "model": {"class_path": "lion_lightning.SFTModule", "init_args": model},
        "data": {"class_path": "lion_lightning.SFTDataModule", "init_args": data},
        "trainer": quiet | {"max_epochs": 3, "enable_progress_bar": False},
    }
    (bench.folder / "stage.yaml").write_text(yaml.safe_dump(config))
    fragment = Path(__file__).parents[2] / "configs" / "model" / f"{name}.yaml"
    command = ["fit", "-c", str(bench.folder / "stage.yaml"), "-c", str(fragment), "--ckpt_path", "last"]
    assert main([*command, "--trainer.max_steps", "1"]) == 0
    assert main([*command, "--trainer.max_steps", "2"]) == 0
    last = bench.folder / "ckpt" / "last.ckpt"
    content = read(last)
    assert content["global_step"] == 2
    assert len(content["state_dict"]) == ADAPTER_KEYS
    assert content["lion"]["policy"]["lora"]["r"] == 16
    assert main(["export", str(last), str(bench.folder / "out")]) == 0
    assert main(["export", str(last), str(bench.folder / "adapter"), "--adapter"]) == 0
