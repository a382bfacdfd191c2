"""On-policy sampling between epochs: the policy answers, a judge scores, and the next epoch trains on the answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lion_lightning.cache import hash_json
from lion_lightning.callbacks.folders import remove_scratch, writes_files
from lion_lightning.data.formats.pairing import BestWorst, Pairing
from lion_lightning.distributed.ranks import Ranks
from lion_lightning.judges.base import Judge
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.generation.trained import find_policy
from lion_lightning.one_lightning import LionCallback
from lion_lightning.rollouts import checks, rounds
from lion_lightning.rollouts.generate import Chunking, RoundWorker
from lion_lightning.rollouts.maker import RoundMaker
from lion_lightning.rollouts.metrics.rounds import epoch_metrics, logged_metrics
from lion_lightning.rollouts.prompts.curriculum import Curriculum
from lion_lightning.rollouts.prompts.dynamic import DynamicSampling
from lion_lightning.rollouts.prompts.history import PromptHistory
from lion_lightning.rollouts.prompts.plan import PromptCandidates, RoundSchedule
from lion_lightning.rollouts.prompts.pool import PromptPool
from lion_lightning.rollouts.rewards.scoring import Scoring
from lion_lightning.rollouts.rewards.shaping import RewardShaping
from lion_lightning.rollouts.rollout import Rollout, with_pairs, with_usable
from lion_lightning.rollouts.rounds import Round
from lion_lightning.sampling.base import Sampler
from lion_lightning.types import Answer, Prompt

logger = logging.getLogger(__name__)

_SETTINGS = (
    *("sampler", "judge", "shaping", "num_samples", "original_chosen", "keep_unfinished", "monitor_samples"),
    *("chunk_size", "dynamic", "seed"),
)


class OnPolicySampling(LionCallback):
    """Samples each epoch's answers from the policy as it is when the epoch begins (stage 3 of LIONs, 2407.06542).

    1. Lightning asks the data module for the epoch's loader (``trainer.reload_dataloaders_every_n_epochs: 1``), and
       the data module calls :meth:`pull` for the epoch's round.
    2. The round takes the next ``prompts_per_round`` prompts, which no earlier round had, and the monitor prompts.
    3. A stored round of the same policy, sampler, judge, prompts and settings is used as it is.
    4. Otherwise the sampler answers each prompt ``num_samples`` times, and the judge scores the answers. All ranks
       share the prompts in chunks, and save each finished chunk, so that a killed run goes on with the others.
    5. The scored answers of each prompt become pairs, or stay a group (``OnPolicyGroupDataModule``), and the round is
       written as one file, ``round-0000.arrow``.
    6. The data module filters and packs them, the metrics are logged, and the epoch trains.

    Answers depend on seed, round and chunk alone, not on the number of ranks or on earlier draws.

    Logs once per round, under ``on_policy/``, the metrics of
    :func:`~lion_lightning.rollouts.metrics.rounds.round_metrics`, and ``pairs_kept``, the share of ``pairs`` that pass
    the data module's filters (of ``groups``: ``groups_kept``).

    Args:
        sampler: Generates the answers.
        judge: Scores the answers to a prompt.
        num_samples: Answers per prompt; the paper has 5.
        prompts_per_round: Prompts per round, or a share of them if below 1; None to divide them among the epochs.
        pairing: How scored answers become pairs; None for the best against the worst. Nothing to give for groups.
        original_chosen: Share of the prompts whose own (chosen) answer is judged and paired along with the sampled
            ones (the paper's p_ori).
        keep_unfinished: Train on answers that were cut off, too; a policy may then learn not to end, unless `shaping`
            makes that cost something.
        shaping: What makes rewards of the judge's scores, in this order.
        monitor_prompts: Prompts that every round answers and none trains on, to compare rounds by; None for 32, or a
            quarter of all prompts if there are fewer than 128.
        monitor_samples: Answers per monitor prompt; several give pass@k and majority@k.
        chunk_size: Prompts that are sampled and saved together: the most that a killed run repeats.
        dynamic: When a round asks further prompts; None for never.
        curriculum: In which order prompts are asked; None for a random one.
        seed: Seed of the order of the prompts and of the answers.
        rounds_dir: Folder of the rounds, shared by all ranks; None for ``rounds`` in the trainer's root folder.

    Raises:
        ValueError: A number is out of range.
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
        shaping: list[RewardShaping] | None = None,
        monitor_prompts: int | None = None,
        monitor_samples: int = 1,
        chunk_size: int = 64,
        dynamic: DynamicSampling | None = None,
        curriculum: Curriculum | None = None,
        seed: int = 0,
        rounds_dir: str | Path | None = None,
    ) -> None:
        checks.check_arguments(num_samples, prompts_per_round, original_chosen, monitor_prompts, chunk_size)
        checks.check_rewards(shaping or [], monitor_samples, monitor_prompts)
        checks.check_curriculum(curriculum, judge)
        checks.check_pool(sampler, num_samples, monitor_prompts, monitor_samples)
        self.sampler, self.judge, self.num_samples = sampler, judge, num_samples
        self.prompts_per_round, self.monitor_prompts, self.chunk_size = prompts_per_round, monitor_prompts, chunk_size
        self.pairing, self.original_chosen, self.keep_unfinished = pairing, original_chosen, keep_unfinished
        self.shaping, self.monitor_samples = shaping or [], monitor_samples
        self.dynamic, self.curriculum, self.seed, self.rounds_dir = dynamic, curriculum, seed, rounds_dir
        self.current: Round | None = None
        self._trained: Round | None = None  # the last that training has begun on; a checkpoint names it
        self._items = "pairs"  # what the data module trains on, or groups
        self._restored: dict[str, Any] = {}
        self._shares: list[int] | None = None
        self._history: PromptHistory | None = None  # where prompts are not taken one after the other
        self._report: dict[str, Any] | None = None  # of the data module, once the round is logged

    # --- for subclasses

    def should_sample(self, epoch: int) -> bool:
        """True if this epoch samples a new round, False to train on the last one again. Epoch 0 always samples."""
        return True

    def usable(self, answer: Answer) -> bool:
        """True if an answer may be trained on: here, if it has text and was not cut off."""
        return bool(answer.text.strip()) and (self.keep_unfinished or answer.finish_reason != "length")

    def make_pairs(self, prompt: Prompt, answers: Sequence[Answer], scores: Sequence[float]) -> list[tuple[int, int]]:
        """Positions of chosen and rejected, a tuple per pair. Ties are allowed: the data module leaves them out.

        Args:
            prompt: The prompt.
            answers: The usable answers, two or more.
            scores: Score of each.
        """
        return (self.pairing or BestWorst()).pairs(scores, f"{self.seed} {prompt.text}")

    # --- Lightning's hooks

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        data = checks.require_on_policy(trainer, pl_module)
        if data.items != "pairs":
            checks.refuse_pairs(data, self.pairing, type(self).make_pairs is not OnPolicySampling.make_pairs)
            checks.warn_of_long_groups(data, self.sampler, self.num_samples)
        checks.require_own_answers(pl_module, self.sampler, self.original_chosen)
        checks.warn_of_misfits(self.shaping, self.sampler, self.usable(Answer("?", "length")))
        data.rounds, self._items = partial(self.pull, trainer, pl_module), data.items
        data.is_used_again = lambda epoch: not self.should_sample(epoch + 1)
        self.current = self._trained = self._report = None  # of an earlier fit
        self._history = PromptHistory(self.curriculum) if self.dynamic or self.curriculum else None
        self._restored = {}
        remove_scratch(trainer, self.folder(trainer))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        find_policy(pl_module, "OnPolicySampling")  # before the data that it is to answer is made

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trained = self.current  # also where an epoch has only its end left
        if trainer.fit_loop.restarted_mid_epoch:  # Lightning calls no on_train_epoch_start for that epoch
            self.on_train_epoch_start(trainer, pl_module)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.current is None:
            return
        self._trained = self.current
        self._report = checks.on_policy_data(trainer).report(self.current)
        metrics = epoch_metrics(self.current, self._report)
        for name, value in logged_metrics(metrics, self.current.items).items():
            pl_module.log(f"on_policy/{name}", value, on_step=False, on_epoch=True, batch_size=1)
        self._write_summary(trainer, {f"on_policy/{name}": value for name, value in metrics.items()})

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # What the module has logged meanwhile; the round's metrics stay as they are, since logged ones are rounded.
        known = self.current.logged_metrics if self.current is not None else {}
        new = [name for name in trainer.callback_metrics if name.startswith("on_policy/") and name not in known]
        self._write_summary(trainer, {name: float(trainer.callback_metrics[name]) for name in new})

    def _write_summary(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        if trainer.is_global_zero and self.current is not None and self._report is not None:
            self.current.write_summary({**self.current.logged_metrics, **metrics}, self._report)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        remove_scratch(trainer, self.folder(trainer))

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._trained is None:
            return {}
        return {"round": self._trained.number, "identity": self._trained.identity, "shares": self._shares}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored, self._shares = state_dict, state_dict.get("shares")

    # --- a round

    def folder(self, trainer: Trainer) -> Path:
        """Folder of the rounds; under ``fast_dev_run`` a temporary one."""
        folder = Path(self.rounds_dir or Path(trainer.default_root_dir) / "rounds")
        return folder if writes_files(trainer) else folder.with_name(f"{folder.name}.fast_dev_run")

    def pull(self, trainer: Trainer, module: LightningModule, epoch: int) -> Round:
        """The round of an epoch: read from disk if it is there, otherwise sampled from the policy as it is now.

        All ranks call this together.

        Raises:
            ValueError: No prompts are left, or sampling or judging failed.
        """
        # Lightning may ask for epoch 0 before it restores the epoch, for trainer.estimated_stepping_batches
        number = max(self.schedule.round_of(epoch), self._restored.get("round", 0))
        if self.current is None or self.current.number != number:
            path = rounds.round_path(self.folder(trainer), number)
            if self._restored.get("round") == number:  # its policy is gone, so it cannot be sampled again
                self.current = rounds.restored_round(path, self._restored["identity"])
            else:
                self.current = self._stored_or_new(trainer, module, path, number)
        return self.current

    def _stored_or_new(self, trainer: Trainer, module: LightningModule, path: Path, number: int) -> Round:
        data = checks.on_policy_data(trainer)
        trained: Any = find_policy(module, "OnPolicySampling")
        policy = RolloutPolicy(trained, data.tokenizer, Ranks.of(trainer.strategy))
        asked = self.choose_prompts(trainer, data.pool, number, data.prompt_limit)
        prompts = [rollout.prompt for rollout in (*asked.prompts, *asked.monitors)]
        settings = rounds.round_settings(self.sampling_settings(), policy.digest(), prompts, data.prompt_limit)
        identity = policy.ranks.broadcast(hash_json(settings))
        worker = RoundWorker.of(policy.ranks, path.with_name(f"{path.stem}.parts-{identity[:12]}"))
        stored = Round(path)
        same = stored.identity == identity
        if policy.ranks.all_agree(same and data.keeps_any_of(stored)):
            logger.info("round %d: found in %s", number, path)
            return stored
        if worker.rank == 0:
            why = f"without {data.items} to train on" if same else "sampled from another policy or with other settings"
            rounds.set_aside(path.parent, number, why)
        scoring, own = Scoring(self.judge, self.shaping), getattr(module, "own_answers", False)
        chunking = Chunking(self.chunk_size, self.num_samples, self.monitor_samples, self.seed)
        maker = RoundMaker(self.sampler, scoring, self._choose, chunking, self.original_chosen, self.dynamic, own)
        return maker.make(worker, policy, asked, path, {"round": number, "identity": identity, **settings})

    def _choose(self, rollout: Rollout) -> Rollout:
        """Add to a scored prompt what is trained of it."""
        rollout = with_usable(rollout, self.usable)
        return with_pairs(rollout, self.make_pairs) if self._items == "pairs" else rollout

    # --- prompts and settings of a round

    @property
    def schedule(self) -> RoundSchedule:
        """Which round each epoch trains on, and its prompts."""
        most = self.dynamic.most if self.dynamic else 1.0
        return RoundSchedule(self.should_sample, self.prompts_per_round, self.monitor_prompts, self.seed, most)

    def choose_prompts(self, trainer: Trainer, pool: PromptPool, number: int, limit: int) -> PromptCandidates:
        """The prompts that a round may ask, and its monitor prompts.

        Raises:
            ValueError: No prompts are left for it, or for the last round of the run; an earlier round is damaged.
        """
        schedule = self.schedule
        schedule.require(trainer, pool)
        prompts = schedule.prompts(trainer, pool)
        if self._history is not None:
            self._history.read(self.folder(trainer), schedule.before(number))
        elif self._shares is not None:
            prompts.warn_of_repeats(self._shares, number)
        self._shares = prompts.shares
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            prompts = prompts.at_most(self.chunk_size)
        chosen, kept = schedule.choose(trainer, pool, prompts, number, self._history)
        return prompts.candidates(pool, chosen, limit, kept)

    def sampling_settings(self) -> dict[str, Any]:
        """Settings that decide the answers to given prompts and what is trained of them, as plain data."""
        parts = {name: getattr(self, name) for name in _SETTINGS} | {"items": self._items}
        parts["pairing"] = (self.pairing or BestWorst()) if self._items == "pairs" else None
        return {"callback": type(self).__qualname__, **{name: rounds.identity_of(part) for name, part in parts.items()}}

    def training_settings(self) -> dict[str, Any]:
        """All settings that decide what is trained, for a resumed run to compare."""
        own = {name: getattr(self, name) for name in ("prompts_per_round", "monitor_prompts", "curriculum")}
        return self.sampling_settings() | {name: rounds.identity_of(part) for name, part in own.items()}
