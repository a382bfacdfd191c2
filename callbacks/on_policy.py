"""On-policy sampling between epochs: the policy answers, a judge scores, and the next epoch trains on the pairs."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lion_lightning.cache import hash_json
from lion_lightning.callbacks.folders import remove_scratch, scratch_or
from lion_lightning.data.formats.pairing import BestWorst, Pairing
from lion_lightning.distributed.ranks import Ranks
from lion_lightning.judges.base import Judge
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.readiness import require_ready
from lion_lightning.rollouts import generate as work
from lion_lightning.rollouts.answers import answered, beside_first, first_answers, paired
from lion_lightning.rollouts.metrics import round_figures
from lion_lightning.rollouts.plan import (
    SHARES,
    RoundPrompts,
    epochs_of,
    last_epoch,
    on_policy_data,
    refuse_nonsense,
    settings_that_decide,
    share_out,
    what_decides,
)
from lion_lightning.rollouts.prompt_pool import Asked, PromptPool
from lion_lightning.rollouts.rounds import Rollout, Round, round_path, set_aside, write_rollouts, write_summary
from lion_lightning.sampling.base import Sampler
from lion_lightning.types import Answer, Prompt

logger = logging.getLogger(__name__)

LOGGED = ("score", "score_spread", "monitor_score", "win_rate", "length", "unfinished", "distinct_2")
"""Figures of a round that are logged as ``on_policy/*``; all of them are in the round's summary."""


class OnPolicySampling(Callback):
    """Samples the pairs of each epoch from the policy as it is when the epoch begins (stage 3 of LIONs, 2407.06542).

    A round is prompts that no round before has asked, ``num_samples`` answers to each, a judge's scores, and the pairs
    they make. The data module pulls it when Lightning asks for the epoch's loader, so the trainer needs
    ``reload_dataloaders_every_n_epochs: 1``. A round is one file, ``round-0000.arrow``, with everything in it. A run
    that was killed in the middle of a round goes on with the same round: prompts that were answered, or scored, are
    not asked or scored again. Drawing depends on seed, round and place alone, not on ranks or on what came before.

    Logs ``on_policy/*`` once a round: mean ``score`` and its ``score_spread`` within a prompt's answers; the
    ``monitor_score`` of the monitor prompts and the ``win_rate`` there against the first round's answers; ``length`` in
    tokens; share of ``unfinished`` answers; ``distinct_2``; ``pairs``, and ``pairs_kept``, the share of them that the
    data module's filters let pass.

    Args:
        sampler: What answers.
        judge: What scores the answers to a prompt.
        num_samples: Answers to each prompt; the paper has 5.
        prompts_per_round: Prompts of a round, or a share of them if below 1; None to share them out over the epochs.
        pairing: How scored answers become pairs; None for the best against the worst.
        original_chosen: Share of the prompts whose own (chosen) answer is judged and paired along with the sampled
            ones (the paper's p_ori).
        keep_unfinished: Whether answers that were cut off may be in a pair; if so, a policy may learn not to end.
        monitor_prompts: Prompts set aside, never trained on, that every round answers once, to compare rounds by; None
            for 32, or a quarter of all prompts where there are fewer than 128.
        chunk_size: Prompts that are answered, and saved, together: what a killed run has to do again at most.
        seed: Of the order of the prompts and of the draws.
        rounds_dir: Folder of the rounds, the same for all ranks; None for ``rounds`` in the trainer's root folder.

    Raises:
        ValueError: If an argument makes no sense.
        MisconfigurationException: Before training, if trainer, module or data module do not fit.
    """

    def __init__(
        self,
        sampler: Sampler,
        judge: Judge,
        num_samples: int = 5,
        prompts_per_round: float | None = None,
        pairing: Pairing | None = None,
        original_chosen: float = 0.0,
        keep_unfinished: bool = False,
        monitor_prompts: int | None = None,
        chunk_size: int = 64,
        seed: int = 0,
        rounds_dir: str | Path | None = None,
    ) -> None:
        refuse_nonsense(num_samples, prompts_per_round, original_chosen, monitor_prompts, chunk_size)
        self.sampler, self.judge, self.num_samples = sampler, judge, num_samples
        self.prompts_per_round, self.pairing = prompts_per_round, pairing or BestWorst()
        self.original_chosen, self.keep_unfinished = original_chosen, keep_unfinished
        self.monitor_prompts, self.chunk_size, self.seed = monitor_prompts, chunk_size, seed
        self.rounds_dir = rounds_dir
        self.present: Round | None = None
        self._restored: dict[str, Any] = {}
        self._shares: list[int] | None = None
        self._summary: dict[str, Any] = {}

    # --- what a subclass may decide

    def should_sample(self, epoch: int) -> bool:
        """Whether this epoch has a round of its own, or trains on the last one again. Epoch 0 always has.

        Args:
            epoch: Number of the epoch.
        """
        return True

    def usable(self, answer: Answer) -> bool:
        """Whether an answer may be in a pair: here, if it says something and was not cut off."""
        return bool(answer.text.strip()) and (self.keep_unfinished or answer.finish_reason != "length")

    def make_pairs(self, prompt: Prompt, answers: Sequence[Answer], scores: Sequence[float]) -> list[tuple[int, int]]:
        """Positions of chosen and rejected, a tuple a pair. Ties may be among them: the data module leaves them out.

        Args:
            prompt: What was asked.
            answers: The usable answers, two or more.
            scores: Score of each.
        """
        return self.pairing.pairs(scores, f"{self.seed} {prompt.text}")

    def training_settings(self) -> dict[str, Any]:
        """What of this callback shapes training, for a resume to compare."""
        return settings_that_decide(self) | {name: getattr(self, name) for name in SHARES}

    # --- Lightning's side

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that everything fits, and offer the rounds to the data module."""
        if stage != "fit":
            return
        self.require_fitting(trainer, pl_module)
        assert isinstance(pl_module, AlignmentModule)
        on_policy_data(trainer).rounds = partial(self.pull, trainer, pl_module)
        self.present, self._restored, self._summary = None, {}, {}  # an earlier run may have left its own
        remove_scratch(trainer, self.folder(trainer))

    def require_fitting(self, trainer: Trainer, module: LightningModule) -> None:
        """Refuse a trainer, module or data module that this callback can't work with.

        Args:
            trainer: Of the run, with its data module.
            module: What it trains.

        Raises:
            MisconfigurationException: One of them does not fit.
        """
        on_policy_data(trainer)
        if trainer.reload_dataloaders_every_n_epochs != 1:  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "OnPolicySampling: each epoch trains on pairs of its own, so its loader has to be made anew; add the "
                "line `reload_dataloaders_every_n_epochs: 1` under `trainer:`"
            )
        if not isinstance(module, AlignmentModule):
            raise MisconfigurationException(
                f"OnPolicySampling: {type(module).__name__} is no AlignmentModule, so it has no policy to sample "
                "from; use OnlineDPOModule, or subclass one"
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log it again in an epoch that a checkpoint stands within: that starts no more."""
        if trainer.fit_loop.restarted_mid_epoch:
            self._log_round(trainer, pl_module)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the round came to."""
        self._log_round(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add to the round's summary what the module logged of it."""
        if self.present is not None and self._summary:
            logged = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("on_policy/")}
            self._write_summary(trainer, logged)

    def _log_round(self, trainer: Trainer, module: LightningModule) -> None:
        if self.present is None:
            return
        report = on_policy_data(trainer).report(self.present)
        figures = round_figures(self.present)
        kept = report["kept"]["pairs"] if report else 0
        figures["pairs_kept"] = kept / max(figures["pairs"], 1)
        for name in (*LOGGED, "pairs", "pairs_kept"):
            module.log(f"on_policy/{name}", figures[name], on_step=False, on_epoch=True, batch_size=1)
        self._summary = {"report": report, "metrics": {f"on_policy/{name}": v for name, v in figures.items()}}
        self._write_summary(trainer, _known_metrics(self.present))

    def _write_summary(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        self._summary["metrics"].update(metrics)
        if trainer.is_global_zero and self.present is not None:
            write_summary(self.present, self._summary)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep nothing of a ``fast_dev_run``."""
        remove_scratch(trainer, self.folder(trainer))

    @override
    def state_dict(self) -> dict[str, Any]:
        """Which round is being trained on."""
        present = self.present
        if present is None:
            return {}
        return {"round": present.number, "identity": present.metadata["identity"], "shares": self._shares}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take that back from a checkpoint."""
        self._restored, self._shares = state_dict, state_dict.get("shares")

    # --- a round

    def folder(self, trainer: Trainer) -> Path:
        """Where the rounds lie. Those of a ``fast_dev_run`` are not kept."""
        return scratch_or(trainer, Path(self.rounds_dir or Path(trainer.default_root_dir) / "rounds"))

    def pull(self, trainer: Trainer, module: AlignmentModule, epoch: int) -> Round:
        """The round of an epoch: from disk where it is there, else made with the policy of this moment.

        Args:
            trainer: Whose ranks make it together; all of them must call this.
            module: Whose policy answers.
            epoch: Number of the epoch.

        Raises:
            ValueError: There are no prompts left, or sampling or judging failed.
        """
        number = self._round_of(epoch)
        if self.present is None or self.present.number != number:
            path = round_path(self.folder(trainer), number)
            self.present = self._resumed(path, number) or self._found_or_made(trainer, module, path, number)
        return self.present

    def _resumed(self, path: Path, number: int) -> Round | None:
        """The round that a checkpoint was in the middle of: its policy is gone, so it can only be found."""
        if self._restored.get("round") != number:
            return None
        if not path.exists():
            what = "is gone"
        elif (identity := _identity_of(path)) != self._restored["identity"]:
            what = "is another now" if identity else "is damaged"
        else:
            return Round(path)
        raise ValueError(
            f"{path}: the checkpoint stands within this round, which {what}; bring it back, or resume from a "
            "checkpoint of the end of the epoch before: the round is then made again"
        )

    def _found_or_made(self, trainer: Trainer, module: AlignmentModule, path: Path, number: int) -> Round:
        data = on_policy_data(trainer)
        served = RolloutPolicy(module.policy_model, data.tokenizer, Ranks.of(trainer.strategy))
        asked, monitors = self._choose(trainer, data.pool, number)
        identity = what_decides(self, served, data, [*asked, *monitors])
        key = trainer.strategy.broadcast(hash_json(identity))
        if path.exists() and _identity_of(path) == key:
            logger.info("round %d: found in %s", number, path)
            return Round(path)
        if trainer.is_global_zero:
            set_aside(path.parent, number)
        folder = path.with_name(f"{path.stem}.parts-{key[:12]}")
        place = work.Place.of(served.ranks, folder)
        started = [Rollout(a.prompt, group=a.group) for a in asked]
        watched = [Rollout(a.prompt, group=a.group, monitor=True) for a in monitors]
        self._make(trainer, served, place, path, (started, watched), {"round": number, "identity": key, **identity})
        return Round(path)

    def _make(
        self,
        trainer: Trainer,
        served: RolloutPolicy,
        place: work.Place,
        path: Path,
        rollouts: tuple[list[Rollout], list[Rollout]],
        metadata: dict[str, Any],
    ) -> None:
        """Sample, judge, pair; every rank its part, the first one puts them together."""
        number, (started, watched) = metadata["round"], rollouts
        limit = on_policy_data(trainer).max_prompt_length or on_policy_data(trainer).max_length - 1
        fits = [len(rollout.prompt.input_ids) <= limit for rollout in started]
        fitting = [rollout for rollout, good in zip(started, fits, strict=True) if good]
        chunks = work.cut(fitting, self.chunk_size, self.num_samples, [self.seed, number])
        chunks += work.cut(watched, self.chunk_size, 1, [self.seed, number], first=len(chunks))
        with place.heartbeat():
            require_ready([self.sampler, self.judge], [rollout.prompt for rollout in started])
            work.start(place, chunks)
            work.sample(chunks, place, self.sampler, served, partial(self._finish, served))
            work.judge(
                chunks,
                place,
                self.judge,
                served.device,
                partial(beside_first, first=first_answers(path.parent, number)),
            )
            if place.rank == 0:
                made = [paired(rollout, self.usable, self.make_pairs) for rollout in work.finished(place, chunks)]
                cause = f"prompt longer than {limit} tokens"
                long = [replace(r, left_out=cause) for r, good in zip(started, fits, strict=True) if not good]
                write_rollouts(path, [*made, *long], metadata)
            else:
                place.wait_for([path])
        served.ranks.barrier()
        if place.rank == 0:
            work.clear(place)

    def _finish(self, served: RolloutPolicy, rollout: Rollout, answers: Sequence[Any]) -> Rollout:
        drawn = random.Random(f"{self.seed} {rollout.group.hex()}").random() < self.original_chosen
        return answered(rollout, answers, served, original=drawn and not rollout.monitor)

    # --- which prompts, and what decides a round

    def require_prompts(self, trainer: Trainer, pool: PromptPool) -> None:
        """Refuse a run that would come to a round without prompts.

        Args:
            trainer: Whose epochs are counted; a run that steps or time may end sooner is checked for the first alone.
            pool: The prompts.

        Raises:
            ValueError: There are too few.
        """
        last = self._round_of(last_epoch(trainer))
        self._shared_out(trainer, pool).require(self._rounds_before(last), last)

    def _choose(self, trainer: Trainer, pool: PromptPool, number: int) -> tuple[list[Asked], list[Asked]]:
        self.require_prompts(trainer, pool)
        prompts = self._shared_out(trainer, pool)
        if self._shares is not None:
            prompts.warn_of_others(self._shares, number)
        self._shares = prompts.shares
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            prompts = prompts.at_most(self.chunk_size)
        return pool.take(prompts.of_round(self._rounds_before(number), number)), pool.take(prompts.monitors)

    def _shared_out(self, trainer: Trainer, pool: PromptPool) -> RoundPrompts:
        epochs = epochs_of(trainer)
        rounds = None if epochs is None else self._rounds_before(epochs)
        return share_out(pool, self.prompts_per_round, self.monitor_prompts, rounds, self.seed)

    def _round_of(self, epoch: int) -> int:
        return max(e for e in range(epoch + 1) if e == 0 or self.should_sample(e))

    def _rounds_before(self, epoch: int) -> int:
        return sum(1 for earlier in range(epoch) if earlier == 0 or self.should_sample(earlier))


def _identity_of(path: Path) -> str | None:
    """What decided a round; None if its file is damaged, or no round."""
    try:
        return str(Round(path).metadata["identity"])
    except ValueError:
        return None


def _known_metrics(made: Round) -> dict[str, float]:
    """What an earlier process has logged of a round, as far as its summary can be read."""
    try:
        metrics = made.summary.get("metrics", {})
    except ValueError:
        return {}
    return {name: math.nan if value is None else value for name, value in metrics.items()}
