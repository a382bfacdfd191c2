"""The Hugging Face folder that a fit leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.demos.boring_classes import BoringModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lion_lightning.callbacks import BeforeAfter, HuggingFaceExport, SampleTable
from lion_lightning.models.checkpoints.export_files import is_export
from lion_lightning.models.lora import LoRASpec
from lion_lightning.modules import SFTModule
from lion_lightning.types import PackedBatch
from tests import tiny
from tests.unit.callbacks.conftest import Bench


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=torch.arange(3, 13)[None], use_cache=False).logits
    return result


def reloaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def test_the_folder_holds_the_trained_weights_and_the_tokenizer(bench: Bench) -> None:
    trainer = bench.trainer(HuggingFaceExport())
    module = bench.fit(trainer)
    folder = bench.folder / "run" / "export"
    assert torch.equal(logits(reloaded(folder)), logits(module.policy_model.causal_lm))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert "<|im_start|>user\nw3" in str(
        tokenizer.apply_chat_template([{"role": "user", "content": "w3"}], tokenize=False)
    )
    assert "Optimizer steps: 6." in (folder / "README.md").read_text("utf-8")


def test_adapters_are_merged_and_the_module_keeps_its_own(bench: Bench) -> None:
    pytest.importorskip("peft")
    trainer = bench.trainer(HuggingFaceExport(str(bench.folder / "merged")))
    module = bench.fit(trainer, bench.module(LoRASpec(r=4)))
    assert any("lora_A" in name for name, _ in module.named_parameters())
    expected = logits(module.policy_model.causal_lm)
    torch.testing.assert_close(logits(reloaded(bench.folder / "merged")), expected, atol=1e-5, rtol=1e-5)


class Breaks(Callback):
    def on_train_batch_end(self, *args: Any) -> None:
        raise RuntimeError("stop")


def test_nothing_is_written_after_an_exception(bench: Bench) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        bench.fit(bench.trainer(HuggingFaceExport(), Breaks()))
    assert list((bench.folder / "run" / "export").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_found_before_training(bench: Bench) -> None:
    (bench.folder / "file").touch()
    with pytest.raises(MisconfigurationException, match=r"cannot write to .*file/out: .*; give .* another dirpath"):
        bench.fit(bench.trainer(HuggingFaceExport(str(bench.folder / "file" / "out")), Breaks()))


def test_a_module_without_a_language_model_is_refused(bench: Bench) -> None:
    with pytest.raises(MisconfigurationException, match="HuggingFaceExport: BoringModel holds no language model that"):
        bench.trainer(HuggingFaceExport()).fit(BoringModel())


def test_validation_alone_exports_nothing(bench: Bench) -> None:
    bench.trainer(HuggingFaceExport()).validate(bench.module(), bench.rows(), verbose=False)
    assert not (bench.folder / "run" / "export").exists()


class NoNumber(Callback):
    """The last step has led nowhere: what comes of a loss that is none is stopped before."""

    def __init__(self, value: float) -> None:
        self.value = value

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        with torch.no_grad():
            module.policy_model.causal_lm.model.norm.weight[3] = self.value


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("-inf"), "an infinity")])
def test_weights_that_are_no_numbers_are_not_exported_and_what_was_there_stays(
    value: float, kind: str, bench: Bench
) -> None:
    bench.fit(bench.trainer(HuggingFaceExport()))
    folder = bench.folder / "run" / "export"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(MisconfigurationException, match=rf"nothing was exported: .*model\.norm\.weight holds {kind}"):
        bench.fit(bench.trainer(HuggingFaceExport(), NoNumber(value), max_steps=1))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


class ValueHead(SFTModule):
    """Trains a head beside the policy."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.value_head = torch.nn.Linear(32, 1)


def test_a_head_beside_the_policy_is_said_to_be_left_out(bench: Bench) -> None:
    plain = bench.module()
    module = ValueHead(plain.policy_spec, tokenizer=plain.tokenizer_spec)
    with pytest.warns(UserWarning, match=r"trained, and not in it: value_head\.weight, value_head\.bias"):
        bench.fit(bench.trainer(HuggingFaceExport()), module)


class Theirs(LightningModule):
    """A module of another project: a bare model or one with adapters, and a tokenizer."""

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        super().__init__()
        self.net, self.tokenizer = model, tokenizer

    def training_step(self, batch: PackedBatch, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.net(input_ids=batch.input_ids[None], labels=batch.input_ids[None]).loss
        return loss

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_the_model_of_any_module_is_written_and_its_adapters_merged(bench: Bench) -> None:
    peft = pytest.importorskip("peft")
    model = tiny.policy(attention="sdpa").causal_lm
    plain = bench.fit(bench.trainer(HuggingFaceExport()), Theirs(model, bench.tokenizer.load()))
    folder = bench.folder / "run" / "export"
    assert torch.equal(logits(reloaded(folder)), logits(plain.net))
    assert is_export(folder)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    module = bench.fit(bench.trainer(HuggingFaceExport()), Theirs(adapted, bench.tokenizer.load()))
    torch.testing.assert_close(logits(reloaded(folder)), logits(module.net), atol=1e-5, rtol=1e-5)
    assert not [name for name in load_file(folder / "model.safetensors") if "lora" in name]


def test_answers_of_any_module_are_shown(bench: Bench) -> None:
    module = Theirs(tiny.policy(attention="sdpa").causal_lm, bench.tokenizer.load())
    bench.fit(bench.trainer(SampleTable(["w3"], max_new_tokens=3), BeforeAfter(["w4"], max_new_tokens=3)), module)
    lines = (bench.folder / "run" / "samples.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 6]
    assert (bench.folder / "run" / "before_after.json").exists()


def test_what_cannot_be_written_is_refused_before_training(bench: Bench) -> None:
    model = tiny.policy(attention="sdpa").causal_lm
    with pytest.raises(MisconfigurationException, match="HuggingFaceExport: Theirs has no tokenizer; set one in"):
        bench.fit(bench.trainer(HuggingFaceExport(), Breaks()), Theirs(model))
    model.save_pretrained(bench.folder / "start")
    start = AutoModelForCausalLM.from_pretrained(bench.folder / "start")
    trainer = bench.trainer(HuggingFaceExport(str(bench.folder / "start")), Breaks())
    with pytest.raises(MisconfigurationException, match=r"Theirs: .*start is the model that training started from"):
        bench.fit(trainer, Theirs(start, bench.tokenizer.load()))
