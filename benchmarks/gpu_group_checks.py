"""Parity of groups on the device at hand (for ``gpu.py``): packed rows, and the gradient of GRPO's loss.

Where the policy has sampled the answers itself, every ratio is 1, and the gradient of GRPO's loss is that of each
answer's mean log-prob times its advantage. So it is computed here, from sequences alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from gpu_checks import EXACT, Check, Place, build, items, packed_rows
from torch import Tensor
from training_workers import loader

from lion_lightning.losses import GRPOLoss
from lion_lightning.models.policy import PolicyModel
from lion_lightning.ops.logprobs import group_views

GROUPS = ((90, 64, 17, 129, 40), (5, 30, 1, 90, 64))
"""Tokens of a prompt and of its answers, every other one of which is right."""


def group_checks(place: Place) -> Iterator[Check]:
    """All of them, one after the other.

    Args:
        place: Where, and how large.
    """
    rows = [item._replace(labels=(True, False, True, False)) for item in items(GROUPS, place)]
    yield from packed_rows("groups, lion, float32", "lion", "float32", rows, place)
    yield from packed_rows("groups, lion, bf16-mixed", "lion", "float32", rows, place, mixed=True)
    policy, plain = (build(path, "float32", place) for path in ("lion", "eager"))
    loss = GRPOLoss()
    batch = next(iter(loader([rows]))).to(place.device)
    (view,) = group_views(batch)  # all groups have the same size
    logps = view.logps(policy(batch))
    ours = gradient(loss(logps, logps.detach(), view.values).sum(), policy)
    advantages = loss.advantages(view.values)
    means = torch.stack([torch.stack([mean_logp(plain, item.prompt, a) for a in item.answers]) for item in rows])
    expected = gradient(-(advantages * means).mean(-1).sum(), plain)
    difference = float((ours - expected).norm() / expected.norm())
    yield Check("GRPO: difference of gradients", difference, EXACT)


def mean_logp(policy: PolicyModel, prompt: list[int], answer: list[int]) -> Tensor:
    """Mean log-prob of an answer's tokens, by the model itself on the sequence alone.

    Args:
        policy: With the model.
        prompt: Tokens.
        answer: Tokens.
    """
    ids = torch.tensor([prompt + answer], device=policy.causal_lm.device)
    logits = policy.causal_lm(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).mean()


def gradient(loss: Tensor, policy: PolicyModel) -> Tensor:
    """Of all parameters, as one vector.

    Args:
        loss: A number.
        policy: Whose parameters.
    """
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(policy.parameters()))])
