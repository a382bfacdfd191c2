"""From prompts to a finished round: sampled, judged, chosen from, and written."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.readiness import require_ready
from lion_lightning.rollouts.files import write_rollouts
from lion_lightning.rollouts.generate import RoundWorker, split_chunks
from lion_lightning.rollouts.rewards.scoring import Scoring
from lion_lightning.rollouts.rollout import Rollout, with_answers, with_first_answer
from lion_lightning.rollouts.rounds import Round, first_monitor_answers
from lion_lightning.sampling.base import Sampler


@dataclass(frozen=True)
class RoundMaker:
    """The parts and settings of ``OnPolicySampling`` that make a round of given prompts.

    Attributes:
        sampler: Generates the answers.
        scoring: Scores the answers to a prompt.
        choose: Adds to a scored rollout what is trained of it.
        num_samples: Answers per prompt.
        monitor_samples: Answers per monitor prompt.
        chunk_size: Prompts that are sampled and saved together.
        original_chosen: Share of the prompts whose own answer is judged, too.
        seed: Seed of the answers, together with the round's number.
    """

    sampler: Sampler
    scoring: Scoring
    choose: Callable[[Rollout], Rollout]
    num_samples: int
    monitor_samples: int
    chunk_size: int
    original_chosen: float
    seed: int

    def make(
        self, worker: RoundWorker, policy: RolloutPolicy, rollouts: list[Rollout], path: Path, metadata: dict[str, Any]
    ) -> Round:
        """Each rank samples and judges its chunks; the first one chooses what is trained, and writes the round."""
        samples = (self.num_samples, self.monitor_samples)
        chunks = split_chunks(rollouts, self.chunk_size, *samples, seed=[self.seed, metadata["round"]])
        first = first_monitor_answers(path.parent, metadata["round"])
        with worker.heartbeat():
            require_ready([self.sampler, self.scoring.judge], [r.prompt for r in rollouts if not r.monitor])
            worker.start(chunks)
            worker.sample(chunks, self.sampler, policy, partial(self._with_answers, policy))
            worker.judge(chunks, self.scoring, policy.device, partial(with_first_answer, first=first))
            if worker.rank == 0:
                scored = map(self.choose, worker.collect(chunks))
                write_rollouts(path, [*scored, *(r for r in rollouts if r.left_out)], metadata)
            else:
                worker.wait_for([path])
        policy.ranks.barrier()
        if worker.rank == 0:
            worker.remove_chunks()
        return Round(path)

    def _with_answers(self, policy: RolloutPolicy, rollout: Rollout, answers: Sequence[Any]) -> Rollout:
        drawn = random.Random(f"{self.seed} {rollout.group.hex()}").random() < self.original_chosen
        return with_answers(rollout, answers, policy, add_original=drawn and not rollout.monitor)
