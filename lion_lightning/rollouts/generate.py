"""One round of sampling, made by all ranks together: answers, then scores, in pieces that survive a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lion_lightning.cache import atomic_write, explain_write_errors, remove_stale_files
from lion_lightning.distributed.rendezvous import WorkerGroup
from lion_lightning.judges.base import Judge, LoadableJudge, score_answers
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.rollouts.rounds import WRITABLE, Rollout, lies_at, read_rollouts, write_rollouts
from lion_lightning.sampling.base import Sampler, SyncedSampler
from lion_lightning.types import Answer


@dataclass(frozen=True)
class Chunk:
    """Prompts that are sampled together, and saved together.

    Attributes:
        number: Its place in the round.
        rollouts: The prompts, without answers yet.
        samples: Answers to each.
        seed: Seed of the draw: of round and place, so that it does not matter which rank draws, or when.
    """

    number: int
    rollouts: tuple[Rollout, ...]
    samples: int
    seed: int


@dataclass(frozen=True)
class Place(WorkerGroup):
    """This process among those that make a round; its folder holds the round's pieces."""

    def sampled(self, chunk: Chunk) -> Path:
        """Where the answers of a chunk lie."""
        return self.folder / f"sampled-{chunk.number:05}.arrow"

    def judged(self, chunk: Chunk) -> Path:
        """Where they lie with their scores."""
        return self.folder / f"judged-{chunk.number:05}.arrow"


def cut(rollouts: Sequence[Rollout], size: int, samples: int, seed: Sequence[int], first: int = 0) -> list[Chunk]:
    """Cut prompts into chunks.

    Args:
        rollouts: The prompts.
        size: Prompts of a chunk.
        samples: Answers to each prompt.
        seed: What the chunks' seeds follow from, with their numbers.
        first: Number of the first chunk.
    """
    parts = [tuple(rollouts[start : start + size]) for start in range(0, len(rollouts), size)]
    numbered = enumerate(parts, start=first)
    return [
        Chunk(number, part, samples, int(np.random.SeedSequence([*seed, number]).generate_state(1)[0]))
        for number, part in numbered
    ]


def sample(
    chunks: Sequence[Chunk],
    place: Place,
    sampler: Sampler,
    served: RolloutPolicy,
    finish: Callable[[Rollout, Sequence[Any]], Rollout],
) -> None:
    """Answer the prompts of this rank's chunks that are not answered yet.

    Args:
        chunks: All chunks, the same on every rank.
        place: This rank.
        sampler: What answers; opened and closed here if it follows the policy. All ranks call this, and open it
            together if any of them has something to do: a policy in pieces is gathered then.
        served: The policy.
        finish: Puts what was answered into a rollout.
    """
    todo = [chunk for chunk in place.strided(chunks) if not lies_at(place.sampled(chunk))]
    if served.ranks.all_agree(not todo):
        return
    with _opened(sampler, SyncedSampler, served):
        for chunk in _progress(todo, "sample", place):
            prompts = [rollout.prompt for rollout in chunk.rollouts]
            answers = sampler.sample(prompts, chunk.samples, chunk.seed)
            _refuse_other_counts(sampler, chunk, answers)
            given = zip(chunk.rollouts, answers, strict=True)
            made = [finish(replace(rollout, seed=chunk.seed), texts) for rollout, texts in given]
            write_rollouts(place.sampled(chunk), made)


def judge(
    chunks: Sequence[Chunk], place: Place, judge: Judge, device: Any, complete: Callable[[Rollout], Rollout]
) -> None:
    """Score the answers of this rank's chunks that are not scored yet.

    Args:
        chunks: All chunks.
        place: This rank.
        judge: What scores; opened and closed here if it holds a model.
        device: Where that model goes.
        complete: Adds to a rollout what its answers are compared with.
    """
    todo = [chunk for chunk in place.strided(chunks) if not lies_at(place.judged(chunk))]
    if not todo:
        return
    with _opened(judge, LoadableJudge, device):
        for chunk in _progress(todo, "judge", place):
            rollouts = [complete(rollout) for rollout in read_rollouts(place.sampled(chunk))]
            texts = [[answer.text for answer in rollout.answers] for rollout in rollouts]
            said = score_answers(judge, [rollout.prompt for rollout in rollouts], texts)
            made = [
                replace(
                    rollout,
                    scores=tuple(said.scores[number]),
                    by_judge={name: tuple(scores[number]) for name, scores in said.by_judge.items()},
                )
                for number, rollout in enumerate(rollouts)
            ]
            write_rollouts(place.judged(chunk), made)


def start(place: Place, chunks: Sequence[Chunk]) -> None:
    """Make the folder of the pieces, on the first rank; the others wait for that."""
    if place.rank > 0:
        place.wait_for([place.messages / "started"])
        return
    with explain_write_errors(place.folder, "sampled answers", WRITABLE):
        place.folder.mkdir(parents=True, exist_ok=True)
        remove_stale_files(place.folder, place.folder.parent)
        with atomic_write(place.folder / "plan.json") as temporary:
            temporary.write_text(json.dumps({"chunks": len(chunks)}), "utf-8")
    if place.size > 1:
        place.send("started")


def finished(place: Place, chunks: Sequence[Chunk]) -> list[Rollout]:
    """All rollouts with their scores, once every rank has written its own."""
    place.wait_for(place.judged(chunk) for chunk in chunks)
    return [rollout for chunk in chunks for rollout in read_rollouts(place.judged(chunk))]


def clear(place: Place) -> None:
    """Remove the pieces of a round that is whole."""
    shutil.rmtree(place.folder, ignore_errors=True)


@contextmanager
def _opened(engine: Any, kind: type, argument: Any) -> Iterator[None]:
    if not isinstance(engine, kind):
        yield
        return
    engine.open(argument)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        engine.close()  # type: ignore[attr-defined]


def _progress(chunks: Sequence[Chunk], what: str, place: Place) -> Iterator[Chunk]:
    total = sum(len(chunk.rollouts) for chunk in chunks)
    with tqdm(total=total, desc=what, unit=" prompts", delay=2, disable=place.rank > 0) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk.rollouts))


def _refuse_other_counts(sampler: Sampler, chunk: Chunk, answers: Sequence[Sequence[Answer]]) -> None:
    counts = [len(texts) for texts in answers]
    if counts != [chunk.samples] * len(chunk.rollouts):
        raise ValueError(
            f"{type(sampler).__name__} gave {counts} answers where {len(chunk.rollouts)} prompts were asked for "
            f"{chunk.samples} each; a sampler gives `n` answers to each prompt, in their order"
        )
