"""A folder in which all three stages have run once, on a model of a few thousand weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig

from lion_lightning.cli import main
from lion_lightning.tools.demo import write_demo

Config = dict[str, Any]
STAGES = ("sft", "dpo", "online")

TURNS = [{"role": "user", "content": "Spell tako."}, {"role": "assistant", "content": "t a k o"}]
PAIR = {"chosen": "t a k o", "rejected": "t a o"}
SFT_ROWS: list[Config] = [
    {"messages": [{"role": "system", "content": "Be short."}, *TURNS]},
    {"conversations": [{"from": "human", "value": "Spell tako."}, {"from": "gpt", "value": "t a k o"}]},
    {"instruction": "Spell it.", "input": "tako", "output": "t a k o"},
    {"prompt": "Spell tako.", "completion": " t a k o"},
    {"text": "t a k o is tako."},
    {"prompt": TURNS[:1], "completion": TURNS[1:]},
    {"instruction": "And tako?", "output": "t a k o", "history": [["Spell neko.", "n e k o"]], "label": True},
    {"messages": json.dumps(TURNS), "tools": "[]", "id": 7, "images": []},
    {"dialog": [{"human": "Spell tako.", "assistant": "t a k o"}], "system_prompt": "Be short."},
    {"conversation": [*TURNS, {"role": "user", "content": [{"type": "text", "text": "And?"}], "name": None}]},
    {"prompt": [TURNS[0], {"role": "assistant", "content": "t a", "prefix": True}], "completion": TURNS[1:]},
    {"text": "\n\nHuman: Spell tako.\n\nAssistant: t a k o"},
    {"conversations": [{"from": "human", "value": "Spell."}, {"from": "function_call", "value": '{"name": "f"}'}]},
    {"instruction": "Spell tako.", "input": None, "response": "t a k o", "weight": 1},
]
PAIR_ROWS: list[Config] = [
    {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [{"role": "assistant", "content": "no"}]},
    {"question": "Spell tako.", **PAIR},
    {"instruction": "Spell it.", "input": "tako", "system": "Be short.", **PAIR},
    {"messages": TURNS[:1], **PAIR, "score_chosen": "2.5", "score_rejected": "1"},
    {"prompt": "Spell tako.", **PAIR},
    {"prompt": "Spell tako.", "answers": ["t a k o", "t a o", "no"], "scores": [2, 1.5, 0]},
    {
        "chosen": TURNS,
        "rejected": [*TURNS[:1], {"role": "assistant", "content": "no"}],
        "score_chosen": 2,
        "score_rejected": 1,
    },
    {"prompt": [TURNS[0], {"role": "assistant", "content": "t a", "prefix": True}], **PAIR},
    {"dialog": TURNS[:1], "answers": ["t a k o", "t a o"], "scores": ["2", "1"]},
    {"chosen": "\n\nHuman: Spell tako.\n\nAssistant: t a k o", "rejected": "\n\nHuman: Spell tako.\n\nAssistant: no"},
]


class LengthJudge:
    """Likes long answers: random weights give answers of different lengths, hardly ever right ones."""

    def score(self, prompts: Any, answers: Any) -> Any:
        """See :class:`~lion_lightning.judges.base.Judge`."""
        return [[float(len(text)) for text in texts] for texts in answers]


class Workspace:
    """The folder, which has to be the working folder; configs of its stages, and what their runs left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_demo("demo", train=24, validation=8, preferences=24, prompts=8, questions=8)
        shape = AutoConfig.from_pretrained("demo/model")
        changes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 256}
        shape.update({**changes, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8})
        shape.save_pretrained("demo/model")
        for name in STAGES:
            self.write(name, self.config(name, "runs"))
            assert main(["fit", "-c", f"{name}.yaml"]) == 0, f"the fuzz's own {name} run failed"
            self.write(f"{name}-again", self.config(name, "again"))  # a step of it, beside what the first run left

    def write(self, name: str, config: Any) -> Path:
        """Write a config as ``NAME.yaml``."""
        path = Path(f"{name}.yaml")
        path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8", errors="replace")
        return path

    def config(self, stage: str, out: str = "fuzzed-out") -> Config:
        """Config of a stage that writes under a folder."""
        config: Config = getattr(self, f"_{stage}")()
        for callback in config["trainer"]["callbacks"]:
            if "dirpath" in callback.get("init_args", ()):
                callback["init_args"]["dirpath"] = f"{out}/{stage}/checkpoints"
        config["trainer"]["default_root_dir"] = f"{out}/{stage}"
        config["trainer"]["max_steps"] = 2 if out == "runs" else 1
        return config

    def _sft(self) -> Config:
        return _config("SFTModule", {"config": "demo/model"}, "SFTDataModule", {"sources": [_source("train")]})

    def _dpo(self) -> Config:
        data = {"sources": [_source("preferences")], "row_length": 256}
        config = _config("DPOModule", {"path": "runs/sft/export"}, "PreferenceDataModule", data)
        config["model"]["init_args"] |= {
            "reference": {"class_path": "lion_lightning.CachedReference"},
            "loss": {"class_path": "lion_lightning.losses.SigmoidLoss", "init_args": {"beta": 0.1}},
        }
        return config

    def _online(self) -> Config:
        data = {"prompts": [_source("prompts")], "row_length": 256}
        config = _config("OnlineDPOModule", {"path": "runs/sft/export"}, "OnPolicyDataModule", data)
        sampler = {"batch_size": 16, "sampling": {"temperature": 1.0, "max_new_tokens": 4}}
        sampling = {
            "sampler": {"class_path": "lion_lightning.sampling.TransformersSampler", "init_args": sampler},
            "judge": {"class_path": "tests.fuzz.workspace.LengthJudge"},
            "num_samples": 2,
            "monitor_prompts": 2,
            "keep_unfinished": True,
        }
        config["trainer"] |= {"max_epochs": 1, "reload_dataloaders_every_n_epochs": 1}
        callback = {"class_path": "lion_lightning.callbacks.OnPolicySampling", "init_args": sampling}
        config["trainer"]["callbacks"].insert(0, callback)
        return config


def _source(name: str) -> Config:
    return {"path": f"demo/{name}.jsonl"}


def _config(module: str, policy: Config, data_module: str, data: Config) -> Config:
    model = {"policy": policy, "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}}
    data = {**data, "max_length": 128, "batch_size": 2, "cache_dir": "cache"}
    saver = {"dirpath": "checkpoints", "save_last": True}
    return {
        "seed_everything": 0,
        "model": {"class_path": f"lion_lightning.{module}", "init_args": model},
        "data": {"class_path": f"lion_lightning.{data_module}", "init_args": data},
        "trainer": {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver},
                {"class_path": "lion_lightning.callbacks.HuggingFaceExport"},
            ],
        },
    }


def jsonl(rows: list[Any]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)
