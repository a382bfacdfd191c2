"""One round, made by all ranks together: sampled, then judged, in chunks that are saved one by one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lion_lightning.cache import atomic_write, explain_write_errors, remove_stale_files
from lion_lightning.distributed.rendezvous import WorkerGroup
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.readiness import Opened
from lion_lightning.rollouts.files import WRITABLE, has_rollouts, read_rollouts, write_rollouts
from lion_lightning.rollouts.rewards.scoring import Scoring
from lion_lightning.rollouts.rollout import Rollout


@dataclass(frozen=True)
class Chunk:
    """Prompts that are sampled, judged and saved together.

    Attributes:
        number: Its number in the round.
        rollouts: The prompts, without answers yet.
        num_samples: Answers per prompt.
        seed: Seed of the answers. It follows from round and chunk, so that no matter which rank samples when.
    """

    number: int
    rollouts: tuple[Rollout, ...]
    num_samples: int
    seed: int


@dataclass(frozen=True)
class Chunking:
    """How the prompts of a round are split into chunks.

    Attributes:
        size: Prompts per chunk.
        num_samples: Answers per prompt.
        monitor_samples: Answers per monitor prompt.
        seed: Seed of the answers, together with the numbers of round and chunk.
    """

    size: int
    num_samples: int
    monitor_samples: int
    seed: int

    def split(self, rollouts: Sequence[Rollout], number: int, first: int = 0) -> list[Chunk]:
        """Split prompts into chunks: first those to train on, then the monitor prompts.

        Args:
            rollouts: The prompts; those that are left out are in no chunk.
            number: Number of the round.
            first: Number of the first chunk.
        """
        chunks: list[Chunk] = []
        for monitor, samples in ((False, self.num_samples), (True, self.monitor_samples)):
            prompts = [rollout for rollout in rollouts if rollout.monitor == monitor and not rollout.left_out]
            for start in range(0, len(prompts), self.size):
                place = first + len(chunks)
                # A stream for each chunk, whatever other chunks and ranks draw.
                seed = np.random.SeedSequence([self.seed, number, place]).generate_state(1)[0]
                chunks.append(Chunk(place, tuple(prompts[start : start + self.size]), samples, int(seed)))
        return chunks


@dataclass(frozen=True)
class RoundWorker(WorkerGroup):
    """This rank among those that make a round. Their shared folder holds the finished chunks.

    No rank waits in a collective while others sample or judge: they have unequal work, and look for each other's files.
    """

    def sampled(self, chunk: Chunk) -> Path:
        """File of a chunk with answers."""
        return self.folder / f"sampled-{chunk.number:05}.arrow"

    def judged(self, chunk: Chunk) -> Path:
        """File of a chunk with answers and scores."""
        return self.folder / f"judged-{chunk.number:05}.arrow"

    def start(self) -> None:
        """Make the folder on the first rank; the others wait for it."""
        if self.rank > 0:
            self.wait_for([self.messages / "started"])
            return
        with explain_write_errors(self.folder, "sampled answers", WRITABLE):
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_stale_files(self.folder, self.folder.parent)
        if self.size > 1:
            self.send("started")

    def announce(self, chunks: int) -> None:
        """Write down, on the first rank, how many chunks the round has so far, for ``lion rounds``."""
        if self.rank == 0:
            path = self.folder / "plan.json"
            with explain_write_errors(path, "sampled answers", WRITABLE), atomic_write(path) as temporary:
                temporary.write_text(json.dumps({"chunks": chunks}), "utf-8")

    def sample(
        self,
        chunks: Sequence[Chunk],
        sampler: Opened,
        policy: RolloutPolicy,
        add_answers: Callable[[Rollout, Sequence[Any]], Rollout],
    ) -> None:
        """Sample answers for this rank's chunks that have none yet.

        Args:
            chunks: Chunks of the round, the same on every rank.
            sampler: The sampler, which stays open. One that follows the policy is opened on all ranks together if any
                has work, since sharded weights are gathered then.
            policy: The policy.
            add_answers: Adds the sampler's answers to a rollout.
        """
        # What a killed run has finished is in the folder already.
        todo = [chunk for chunk in self.strided(chunks) if not has_rollouts(self.sampled(chunk))]
        if policy.ranks.all_agree(not todo):
            return
        sampler.open()
        for chunk in self._progress(todo, "sample"):
            prompts = [rollout.prompt for rollout in chunk.rollouts]
            answers = sampler.part.sample(prompts, chunk.num_samples, chunk.seed)
            counts = list(map(len, answers))
            if counts != [chunk.num_samples] * len(prompts):
                raise ValueError(
                    f"{type(sampler.part).__name__} gave {counts} answers where {len(prompts)} prompts were asked for "
                    f"{chunk.num_samples} each; a sampler gives `n` answers to each prompt, in their order"
                )
            seeded = [replace(rollout, seed=chunk.seed) for rollout in chunk.rollouts]
            write_rollouts(self.sampled(chunk), map(add_answers, seeded, answers))

    def judge(
        self, chunks: Sequence[Chunk], judge: Opened, scoring: Scoring, add_comparison: Callable[[Rollout], Rollout]
    ) -> None:
        """Score the answers of this rank's chunks that have no scores yet; the judge stays open."""
        todo = [chunk for chunk in self.strided(chunks) if not has_rollouts(self.judged(chunk))]
        if todo:
            judge.open()
        for chunk in self._progress(todo, "judge"):
            # Read back from disk, so that a resumed run judges the very same answers.
            rollouts = [add_comparison(rollout) for rollout in read_rollouts(self.sampled(chunk))]
            write_rollouts(self.judged(chunk), scoring.score(rollouts))

    def collect(self, chunks: Sequence[Chunk]) -> list[Rollout]:
        """All rollouts with their scores, once every rank has written its own."""
        self.wait_for(map(self.judged, chunks))
        rollouts: list[Rollout] = []
        for chunk in chunks:
            rollouts += read_rollouts(self.judged(chunk))
        return rollouts

    def remove_chunks(self) -> None:
        """Remove the folder, once the round is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _progress(self, chunks: Sequence[Chunk], verb: str) -> Iterator[Chunk]:
        total = sum(len(chunk.rollouts) for chunk in chunks)
        with tqdm(total=total, desc=verb, unit=" prompts", delay=2, disable=self.rank > 0) as bar:
            for chunk in chunks:
                yield chunk
                bar.update(len(chunk.rollouts))
