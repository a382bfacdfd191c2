"""A model's answers to the prompts of an evaluation, kept on disk as they come."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lion_lightning.cache import writing
from lion_lightning.data.readers import digest
from lion_lightning.models.serving import Serving
from lion_lightning.sampling.base import Following, Sampler
from lion_lightning.types import Answer, Prompt

logger = logging.getLogger(__name__)


def answer(
    served: Serving,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    seed: int = 0,
    keep: Path | None = None,
    chunk_size: int = 256,
) -> list[Answer]:
    """One answer to each prompt, from a file of an earlier call as far as that has them.

    Args:
        served: The model.
        prompts: What is asked.
        sampler: What answers.
        seed: Of the draws; each chunk has its own, so that a resumed call draws what an unbroken one would have.
        keep: JSONL file to keep the answers in: a line that says whose they are, then one a prompt. If it holds those
            of another model, sampler, seed or prompts, it is written anew. None keeps nothing.
        chunk_size: Prompts answered, and saved, together.

    Raises:
        ValueError: If the sampler gives too few answers, or the file cannot be written.
    """
    identity = _identity(served, prompts, sampler, seed, chunk_size)
    found = _found(keep, identity)[: len(prompts)] if keep else []
    found = found[: len(found) // chunk_size * chunk_size] if len(found) < len(prompts) else found
    if keep and found:
        logger.info("%s: %d of %d answers were there", keep, len(found), len(prompts))
    if len(found) == len(prompts):
        return found
    if keep:
        _begin(keep, identity, prompts, found)
    starts = range(len(found), len(prompts), chunk_size)
    if isinstance(sampler, Following):
        sampler.open(served)
    try:
        for start in tqdm(starts, "answers", unit=" chunks", delay=2):
            chunk = prompts[start : start + chunk_size]
            made = _asked(sampler, chunk, seed + start)
            found += made
            if keep:
                _append(keep, chunk, made)
    finally:
        if isinstance(sampler, Following):
            sampler.close()
    return found


def _asked(sampler: Sampler, prompts: Sequence[Prompt], seed: int) -> list[Answer]:
    given = list(sampler.sample(prompts, 1, seed))
    if len(given) != len(prompts) or not all(len(row) == 1 for row in given):
        name = type(sampler).__name__
        raise ValueError(
            f"{name} was asked for one answer to each of {len(prompts)} prompts, and gave {len(given)} rows"
        )
    return [_plain(row[0]) for row in given]


def _plain(given: Any) -> Answer:
    """An answer of any class with an answer's attributes, or a bare text."""
    if isinstance(given, str):
        return Answer(given)
    ids = getattr(given, "token_ids", None)
    return Answer(given.text, getattr(given, "finish_reason", "stop"), None if ids is None else tuple(map(int, ids)))


def _identity(served: Serving, prompts: Sequence[Prompt], sampler: Any, seed: int, chunk_size: int) -> str:
    described = sampler.identity() if hasattr(sampler, "identity") else type(sampler).__qualname__
    asked = [[prompt.text, list(prompt.input_ids)] for prompt in prompts]
    plain = json.loads(json.dumps(described, default=str))
    return digest([served.digest(), plain, seed, chunk_size, asked])


def _found(path: Path, identity: str) -> list[Answer]:
    if not path.exists():
        return []
    lines = path.read_text("utf-8").splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith("\n")]  # a killed run may leave half a line
    if not whole or whole[0].get("answers_of") != identity:
        logger.info("%s: answers of another model, or to other prompts; asked anew", path)
        return []
    return [
        Answer(row["answer"], row["finish_reason"], tuple(row["token_ids"]) if row["token_ids"] else None)
        for row in whole[1:]
    ]


def _begin(path: Path, identity: str, prompts: Sequence[Prompt], found: Sequence[Answer]) -> None:
    with writing(path, "answers", "give the evaluation another `out`"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"answers_of": identity}) + "\n", encoding="utf-8")
    _append(path, prompts, found)


def _append(path: Path, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> None:
    lines = [_line(prompt, given) for prompt, given in zip(prompts, answers, strict=False)]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def _line(prompt: Prompt, given: Answer) -> str:
    row = {"question": prompt.question, "answer": given.text, **given._asdict()}
    del row["text"]
    return json.dumps(row, ensure_ascii=False) + "\n"
