"""The Hugging Face folder that a fit leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.demos.boring_classes import BoringModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lion_lightning.callbacks import HuggingFaceExport
from lion_lightning.models.lora import LoRASpec
from lion_lightning.modules import SFTModule
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


def test_a_module_that_cannot_say_what_it_is_is_refused(bench: Bench) -> None:
    with pytest.raises(MisconfigurationException, match=r"BoringModel has no provenance\(\)"):
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
