"""Answers to the prompts of an evaluation, saved to disk chunk by chunk."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lion_lightning.cache import atomic_write, explain_write_errors, hash_json
from lion_lightning.data.sources.text_files import parse_line
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.readiness import opened
from lion_lightning.sampling.answers import sample_one_each
from lion_lightning.sampling.base import Sampler
from lion_lightning.types import Answer, Prompt

logger = logging.getLogger(__name__)

KEY = "answers_of"
"""Key of a file's first line, with the hash of model, sampler and prompts."""


def answer(
    served: RolloutPolicy,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    seed: int = 0,
    keep: Path | None = None,
    chunk_size: int = 256,
) -> list[Answer]:
    """Sample one answer per prompt, except for those in the file of an earlier call.

    Args:
        served: The model.
        prompts: The prompts.
        sampler: The sampler.
        seed: Seed for sampling; each chunk has a derived one, so that a resumed call gives the same answers.
        keep: JSONL file of the answers, after a line with a hash. A file of another model, sampler, seed or prompts is
            overwritten. None saves nothing.
        chunk_size: Number of prompts that are answered and saved together; incomplete chunks are answered again.

    Raises:
        ValueError: The sampler returns another number of answers, or the file cannot be written or is not of this kind.
    """
    identity = _identity(served, prompts, sampler, seed, chunk_size)
    found = _found(keep, identity) if keep else []
    if len(found) < len(prompts):  # a chunk is drawn from one seed, so a part of it is drawn again
        del found[len(found) // chunk_size * chunk_size :]
    if keep and found:
        logger.info("%s: %d of %d answers found", keep, len(found), len(prompts))
    if len(found) == len(prompts):
        return found
    if keep:  # once more with the answers found, without those of an incomplete chunk
        with _explain_errors(keep):
            keep.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(keep) as temporary:
                temporary.write_text(json.dumps({KEY: identity}) + "\n" + _lines(prompts, found), encoding="utf-8")
    with opened(sampler, served), tqdm(desc="answers", total=len(prompts), initial=len(found)) as bar:
        for start in range(len(found), len(prompts), chunk_size):
            chunk = prompts[start : start + chunk_size]
            drawn = int(np.random.SeedSequence([seed, start]).generate_state(1)[0])
            made = sample_one_each(sampler, chunk, drawn, served)
            found += made
            if keep:
                with _explain_errors(keep), keep.open("a", encoding="utf-8") as file:
                    file.write(_lines(chunk, made))
            bar.update(len(chunk))
    return found


def _identity(served: RolloutPolicy, prompts: Sequence[Prompt], sampler: Any, seed: int, chunk_size: int) -> str:
    described = sampler.identity() if hasattr(sampler, "identity") else type(sampler).__qualname__
    asked = [[prompt.text, list(prompt.input_ids)] for prompt in prompts]
    return hash_json([served.digest(), described, seed, chunk_size, asked])


def _found(path: Path, identity: str) -> list[Answer]:
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # the last line of a killed run may be incomplete
    if not lines:
        return []
    if not lines[0].startswith(f'{{"{KEY}"'.encode()):
        raise ValueError(f"{path} is not a file of answers of an evaluation; give another `out`, or move the file")
    if parse_line(lines[0], path, 1).get(KEY) != identity:
        logger.info("%s: answers of another model or sampler, or to other prompts; sampling again", path)
        return []
    return [_read(parse_line(line, path, number), path, number) for number, line in enumerate(lines[1:], start=2)]


def _read(row: dict[str, Any], path: Path, number: int) -> Answer:
    text, reason, ids = row.get("answer"), row.get("finish_reason"), row.get("token_ids")
    tokens = ids is None or (isinstance(ids, list) and all(isinstance(one, int) and one >= 0 for one in ids))
    if not (isinstance(text, str) and isinstance(reason, str) and tokens):
        raise ValueError(f"{path}:{number}: not an answer of an evaluation; remove the file and rerun")
    return Answer(text, reason, None if ids is None else tuple(ids))


def _explain_errors(path: Path) -> Any:
    return explain_write_errors(path, "answers", "give the evaluation another `out`")


def _lines(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> str:
    """One JSON line per answer."""
    lines = []
    for prompt, one in zip(prompts, answers, strict=False):
        row = {"question": prompt.question, "answer": one.text, "finish_reason": one.finish_reason}
        lines.append(json.dumps({**row, "token_ids": one.token_ids}, ensure_ascii=False) + "\n")
    return "".join(lines)
