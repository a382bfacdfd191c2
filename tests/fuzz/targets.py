"""What is fuzzed: each target draws a case, which is a call and the words that an error of it has to name."""

from __future__ import annotations

import bz2
import gzip
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch

from lion_lightning.cli import main
from lion_lightning.errors import explain
from lion_lightning.judges import RubricLLMJudge
from lion_lightning.sampling import ServerSampler
from lion_lightning.types import Prompt
from tests.fuzz.mutations import damaged, mutated
from tests.fuzz.workspace import PAIR_ROWS, SFT_ROWS, Workspace, jsonl
from tests.unit.chat_server import serving

Case = tuple[str, Callable[[], int], tuple[str, ...]]
"""What was done, the call, and the words that an error has to name one of."""


def configs(space: Workspace, random: Random) -> Case:
    """A config of a stage with one thing changed, or with damaged bytes; trained for a step, or inspected."""
    stage = random.choice(("sft", "sft", "dpo", "online"))
    path = Path("fuzzed.yaml")
    if random.random() < 0.2:
        path.write_bytes(damaged(Path(f"{stage}.yaml").read_bytes(), random))
        names: tuple[str, ...] = ()
    else:
        change = mutated(space.config(stage), random)
        space.write("fuzzed", change.value)
        names = change.names[-1:] and (*change.names, "fuzzed.yaml", "data.", "model.", "trainer.", "sampling.")
    command = ["inspect"] if stage == "sft" and random.random() < 0.3 else ["fit"]
    more = ["--trainer.max_steps=1"] if command == ["fit"] else []
    return path.read_text("utf-8", errors="replace"), lambda: main([*command, "-c", str(path), *more]), names


def rows(space: Workspace, random: Random) -> Case:
    """A good row and one with a thing changed, or damaged bytes, in a file of any kind, as documents or as pairs."""
    stage, forms = random.choice((("sft", SFT_ROWS), ("dpo", PAIR_ROWS)))
    good = random.choice(forms)
    path = Path(random.choice(("fuzzed.jsonl", "fuzzed.json", "fuzzed.csv", "fuzzed.jsonl.gz")))
    text = jsonl([good, mutated(good, random).value, good])
    content = random.choice(FILES)(text)
    path.write_bytes(damaged(content, random) if random.random() < 0.2 else content)
    source = {
        "path": str(path),
        "on_bad_row": random.choice(("error", "skip")),
        "format": random.choice((None, "chat")),
    }
    shutil.rmtree("fuzzed-cache", ignore_errors=True)
    sources = f"--data.sources={json.dumps([source])}"
    arguments = ["inspect", "-c", f"{stage}.yaml", sources, "--data.cache_dir=fuzzed-cache", "--rows=1"]
    return f"{source} {content[:4]!r}\n{text}", lambda: main(arguments), (str(path), "fuzzed", "data.")


FILES: tuple[Callable[[str], bytes], ...] = (
    lambda text: text.encode("utf-8", "replace"),
    lambda text: text.encode("utf-8-sig", "replace"),
    lambda text: text.encode("utf-16", "replace"),
    lambda text: gzip.compress(text.encode("utf-8", "replace")),
    lambda text: bz2.compress(text.encode("utf-8", "replace")),
    lambda text: f"[{','.join(text.splitlines())}]".encode("utf-8", "replace"),
)
"""Ways to write JSON lines to a file; its name need not say which."""


def checkpoints(space: Workspace, random: Random) -> Case:
    """A checkpoint with damaged bytes, or with one of its entries changed; exported, or resumed from."""
    stage = random.choice(("sft", "dpo"))
    path = Path("fuzzed.ckpt")
    good = Path(f"runs/{stage}/checkpoints/last.ckpt")
    if random.random() < 0.5:
        path.write_bytes(damaged(good.read_bytes(), random))
        what = "bytes"
    else:
        change = mutated(torch.load(good, weights_only=True), random)
        torch.save(change.value, path)
        what = ".".join(change.names)
    commands = [["export", str(path), "fuzzed-export"], ["fit", "-c", f"{stage}-again.yaml", f"--ckpt_path={path}"]]
    arguments = random.choice(commands)
    return f"{arguments[0]} {stage}: {what}", lambda: main(arguments), (str(path), "checkpoint")


def files(space: Workspace, random: Random) -> Case:
    """A file of an earlier run, damaged or with one thing changed, under a command that reads it."""
    shutil.rmtree("fuzzed", ignore_errors=True)
    shutil.copytree("runs", "fuzzed/runs")
    shutil.copytree("cache", "fuzzed/cache")
    commands: dict[str, tuple[list[str], list[Path]]] = {
        "chat": (["chat", "fuzzed/runs/sft/export"], _files("fuzzed/runs/sft/export")),
        "rounds": (["rounds", "fuzzed/runs/online/rounds"], _files("fuzzed/runs/online/rounds")),
        "inspect": (["inspect", "-c", "sft.yaml", "--data.cache_dir=fuzzed/cache"], _files("fuzzed/cache")),
        "dpo": (["fit", "-c", "dpo-again.yaml", "--data.cache_dir=fuzzed/cache"], _files("fuzzed/cache")),
        "start": (
            ["fit", "-c", "dpo-again.yaml", "--model.policy.path=fuzzed/runs/sft/export"],
            _files("fuzzed/runs/sft/export"),
        ),
    }
    name = random.choice([name for name, (_, found) in commands.items() if found])
    arguments, found = commands[name]
    path = random.choice(found)
    _change(path, random)
    return f"{name}: {path}", lambda: main(arguments), (path.name, *path.parent.parts[-2:], "chat template")


def _files(folder: str) -> list[Path]:
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def _change(path: Path, random: Random) -> None:
    """Change one thing of a JSON file, or damage any file; sometimes it is gone."""
    if random.random() < 0.1:
        path.unlink()
    elif path.suffix == ".json" and random.random() < 0.5:
        change = mutated(json.loads(path.read_text("utf-8")), random)
        path.write_text(json.dumps(change.value), encoding="utf-8", errors="replace")
    else:
        path.write_bytes(damaged(path.read_bytes(), random))


COMPLETION = {
    "choices": [{"index": 0, "text": " tako", "finish_reason": "stop", "token_ids": [5, 6]}],
    "model": "m",
    "usage": {"completion_tokens": 2},
}
CHAT = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Good.\nRating: 7"}}]}


def replies(space: Workspace, random: Random) -> Case:
    """A server's reply with one thing changed, to a sampler or to a judge."""
    judged = random.random() < 0.5
    change = mutated(CHAT if judged else COMPLETION, random)
    status = random.choice((200, 200, 200, 200, 400, 404, 204))
    once: dict[str, Any] = {"retries": 0, "timeout": 5.0}
    shutil.rmtree("judgements", ignore_errors=True)

    def call() -> int:
        with serving(lambda route, body: (status, change.value)) as url:
            prompt = Prompt("Spell tako.", (5, 6), where="prompts.jsonl:1")
            if judged:
                RubricLLMJudge(url, "m", endpoint=once, cache_dir="judgements", attempts=1).score([prompt], [["tako"]])
            else:
                ServerSampler(url, model="m", **once).sample([prompt], 1, 0)
        return 0

    return f"{status} {json.dumps(change.value)[:500]}", lambda: _explained(call), ("127.0.0.1", "prompts.jsonl:1")


def _explained(call: Callable[[], int]) -> int:
    """As the command line ends it."""
    try:
        return call()
    except (ValueError, OSError) as error:
        print(f"lion: error: {explain(error)}", file=sys.stderr)
        return 2


TARGETS: dict[str, tuple[float, Callable[[Workspace, Random], Case]]] = {
    "configs": (0.35, configs),
    "rows": (0.2, rows),
    "checkpoints": (0.15, checkpoints),
    "files": (0.2, files),
    "replies": (0.1, replies),
}
"""Share of the time, and what draws a case."""


def cases(space: Workspace, name: str, seed: int) -> Iterator[Case]:
    """Cases of a target without end, the same for the same seed."""
    number = 0
    while True:
        yield TARGETS[name][1](space, Random(f"{seed} {name} {number}"))
        number += 1
