"""Why two sides differ: the line of code that makes it so, and code in which this one difference is gone."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lion_lightning.losses import BCOPairLoss


@dataclass(frozen=True)
class Difference:
    """A line that makes the other side differ.

    Attributes:
        why: In words.
        module: Where the line is.
        line: Its text, without the white space around it.
        after: A text before it in the file, where the line comes several times.
    """

    why: str
    module: str
    line: str
    after: str = ""

    @property
    def place(self) -> str:
        """File and line number in the version that is installed.

        Raises:
            ValueError: The line is not there.
        """
        spec = find_spec(self.module)
        assert spec is not None
        assert spec.origin is not None
        text = Path(spec.origin).read_text(encoding="utf-8")
        lines = text.splitlines()
        first = text[: text.index(self.after)].count("\n") if self.after in text else len(lines)
        for number, line in enumerate(lines[first:], first + 1):
            if line.strip() == self.line:
                return f"{self.module.replace('.', '/')}.py:{number}"
        raise ValueError(f"{self.module} has no line {self.line!r}; say anew what the difference comes from")


SMOOTHING = Difference(
    "`sigmoid` ignores `label_smoothing`",
    "trl.trainer.dpo_trainer",
    "per_sequence_loss = -F.logsigmoid(self.beta * delta_score)",
    after='if loss_type == "sigmoid":',
)
SHIFT = Difference(
    "TRL's `bco_pair` has no shift (the paper's δ, the mean reward)",
    "trl.trainer.dpo_trainer",
    "per_sequence_loss = -F.logsigmoid(chosen_rewards) - F.logsigmoid(-rejected_rewards)",
)
BY_TOKEN = Difference(
    "the likelihood is TRL's mean over the tokens of a micro-batch, ours over its pairs",
    "trl.trainer.dpo_trainer",
    "batch_loss = -chosen_per_token_logps[chosen_mask.bool()].mean()",
)
CPO_BY_TOKEN = Difference(BY_TOKEN.why, "trl.experimental.cpo.cpo_trainer", "loss_fct = nn.CrossEntropyLoss()")
PROMPT = Difference(
    "TRL's likelihood is the prompt's, too, and a mean over a micro-batch's tokens; the paper's is the answer's",
    "trl.experimental.orpo.orpo_trainer",
    "chosen_nll_loss = cross_entropy_loss(all_logits[:len_chosen], labels[:len_chosen])",
)
MISMATCHED = Difference(
    "TRL's mismatched answers are those of the same micro-batch, ours those of the next prompt in the data",
    "trl.trainer.kto_trainer",
    'examples["KL_completion_ids"] = [examples["completion_ids"][-1]] + examples["completion_ids"][:-1]',
)
SHORT = Difference(
    "a micro-batch with fewer pairs weighs as much as a whole one in TRL; ours takes the mean over the step's pairs",
    "transformers.trainer",
    "loss = loss / self.current_gradient_accumulation_steps",
)
SCHEDULE = Difference(
    "the warmup of `transformers` begins with a step at a rate of zero",
    "transformers.optimization",
    "return float(current_step) / float(max(1, num_warmup_steps))",
    after="def _get_linear_schedule_with_warmup_lr_lambda",
)
ROUND = Difference(
    "TRL divides by a step's share of the round's tokens, ours by the step's own",
    "trl.trainer.grpo_trainer",
    "normalizer = normalizer * self.current_gradient_accumulation_steps / self.args.steps_per_generation",
)
MICRO_BATCH = Difference(
    "`bnpo` divides by the tokens of a micro-batch, DAPO by those of the step",
    "trl.trainer.grpo_trainer",
    "loss = (per_token_loss * mask).sum() / mask.sum().clamp(min=1.0)",
)

POWER = Difference(
    "a power of e multiplies what fp32 rounds off: two runs of TRL are as far apart (next line), lower rates agree",
    "trl.trainer.dpo_trainer",
    "chosen_scores = 1 - torch.exp(-chosen_logratios)",
)
MODULATION = Difference(POWER.why, "trl.trainer.dpo_trainer", "exp_component = torch.exp(-logits)")


class BCOWithoutShift(BCOPairLoss):
    """BCO with a shift of 0, as in TRL."""

    @property
    @override
    def shift(self) -> Tensor:
        return torch.zeros(())


def likelihood_of_answers(trainer: Any) -> Any:
    """ORPOTrainer with the likelihood of the answers alone, every pair with the same weight.

    Args:
        trainer: ORPOTrainer.
    """

    class OfAnswers(trainer):  # type: ignore[misc]
        def concatenated_forward(self, *arguments: Any) -> Any:
            chosen, *others, _ = super().concatenated_forward(*arguments)
            return chosen, *others, -chosen.mean()  # chosen: log-probs a token

    return OfAnswers
