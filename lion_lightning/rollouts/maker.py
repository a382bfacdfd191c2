"""From prompts to a finished round: sampled, judged, chosen from, and written."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.readiness import Opened, require_ready
from lion_lightning.rollouts.files import write_rollouts
from lion_lightning.rollouts.generate import Chunk, Chunking, RoundWorker
from lion_lightning.rollouts.prompts.dynamic import DynamicSampling
from lion_lightning.rollouts.prompts.plan import PromptCandidates
from lion_lightning.rollouts.rewards.scoring import Scoring
from lion_lightning.rollouts.rollout import Rollout, with_answers, with_first_answer
from lion_lightning.rollouts.rounds import Round, first_monitor_answers
from lion_lightning.rollouts.waves import Waves
from lion_lightning.sampling.base import Sampler


@dataclass(frozen=True)
class RoundMaker:
    """The parts and settings of ``OnPolicySampling`` that make a round of given prompts.

    Attributes:
        sampler: Generates the answers.
        scoring: Scores the answers to a prompt.
        choose: Adds to a scored rollout what is trained of it.
        chunking: How prompts are split, and the answers per prompt.
        original_chosen: Share of the prompts whose own answer is judged, too.
        dynamic: When to ask further prompts; None for never.
        own_tokens: Whether the sampler has to give the tokens that it drew: texts are not tokenized.
    """

    sampler: Sampler
    scoring: Scoring
    choose: Callable[[Rollout], Rollout]
    chunking: Chunking
    original_chosen: float
    dynamic: DynamicSampling | None = None
    own_tokens: bool = False

    def make(
        self, worker: RoundWorker, policy: RolloutPolicy, asked: PromptCandidates, path: Path, metadata: dict[str, Any]
    ) -> Round:
        """Each rank samples and judges its chunks; the first one decides on further waves, and writes the round."""
        sampler, judge = Opened(self.sampler, policy), Opened(self.scoring.judge, policy.device)
        compare = partial(with_first_answer, first=first_monitor_answers(path.parent, metadata["round"]))
        waves, chunks = Waves(asked, self.dynamic, self.chunking.size), 0
        with worker.heartbeat(), sampler, judge:
            require_ready([self.sampler, self.scoring.judge], [rollout.prompt for rollout in asked.prompts])
            worker.start()
            wave = waves.begin()
            while wave:
                new = self.chunking.split(wave, metadata["round"], chunks)
                chunks += len(new)
                worker.announce(chunks)
                in_turns = self.dynamic is not None and self.dynamic.in_turns
                worker.sample(new, sampler, policy, partial(self._with_answers, policy))
                if waves.all_asked or in_turns:  # the judge may need its memory
                    sampler.close()
                worker.judge(new, judge, self.scoring, compare)
                if in_turns:
                    judge.close()
                # The first rank decides, and no other waits in a collective while some still judge.
                more = worker.from_first(f"more-after-{waves.asked}", partial(self._add, waves, worker, new))
                wave = waves.take(int(more))
            if worker.rank == 0:
                write_rollouts(path, waves.finish(metadata["round"]), {**metadata, "waves": waves.counts})
            else:
                worker.wait_for([path])
        policy.ranks.barrier()  # nobody reads the chunks any more
        if worker.rank == 0:
            worker.remove_chunks()
            for left in path.parent.glob(f"{path.stem}.parts-*"):  # of a killed run with other settings
                shutil.rmtree(left, ignore_errors=True)
        return Round(path)

    def _add(self, waves: Waves, worker: RoundWorker, chunks: Sequence[Chunk]) -> str:
        return str(waves.add([self.choose(rollout) for rollout in worker.collect(chunks)]))

    def _with_answers(self, policy: RolloutPolicy, rollout: Rollout, answers: Sequence[Any]) -> Rollout:
        if self.own_tokens and not all(getattr(answer, "token_ids", None) for answer in answers):
            raise ValueError(
                f"{rollout.prompt.where}: {type(self.sampler).__name__} gave an answer without `token_ids`, and the "
                "tokens that were drawn are what is trained; give objects with `text`, `finish_reason` and `token_ids` "
                "(of a server: use one that returns token ids, as vLLM does)"
            )
        # By the prompt alone: neither order nor ranks change which prompts bring their own answer.
        drawn = random.Random(f"{self.chunking.seed} {rollout.group.hex()}").random() < self.original_chosen
        return with_answers(rollout, answers, policy, add_original=drawn and not rollout.monitor)
