"""Loss and reference of a recipe."""

from __future__ import annotations

from typing import Any

from lion_lightning.tools.importing.recipe import Losses, Recipe

PAIR_LOSSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "sigmoid": ("SigmoidLoss", ("beta", "label_smoothing", "divergence")),
    "sigmoid_norm": ("SigmoidNormLoss", ("beta", "label_smoothing", "divergence")),
    "ld": ("LDDPOLoss", ("beta", "shared_length", "label_smoothing", "divergence")),
    "hinge": ("HingeLoss", ("beta",)),
    "ipo": ("IPOLoss", ("beta",)),
    "exo_pair": ("EXOLoss", ("beta", "label_smoothing")),
    "nca_pair": ("NCALoss", ("beta",)),
    "robust": ("RobustLoss", ("beta", "label_smoothing")),
    "bco_pair": ("BCOPairLoss", ("beta",)),
    "sppo_hard": ("SPPOHardLoss", ("beta",)),
    "aot": ("AOTLoss", ("beta", "label_smoothing")),
    "aot_pair": ("AOTLoss", ("beta", "label_smoothing")),
    "aot_unpaired": ("AOTUnpairedLoss", ("beta", "label_smoothing")),
    "discopop": ("DiscoPOPLoss", ("beta", "tau")),
    "apo_zero": ("APOZeroLoss", ("beta",)),
    "apo_down": ("APODownLoss", ("beta",)),
    "kto_pair": ("KTOPairLoss", ("beta",)),
    "sft": ("ChosenNLLLoss", ()),
    "orpo": ("ORPOLoss", ("beta",)),
    "simpo": ("SimPOLoss", ("beta", "gamma")),
    "cpo": ("CPOLoss", ("beta", "likelihood")),
}
"""Class and arguments of each loss of pairs, by TRL's name; ``ld``, ``orpo``, ``cpo`` and ``simpo`` are ours."""

ANSWER_LOSSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "kto": ("KTOLoss", ("beta", "desirable_weight", "undesirable_weight")),
    "apo_zero_unpaired": ("APOZeroUnpairedLoss", ("beta", "desirable_weight", "undesirable_weight")),
    "bco": ("BCOLoss", ("beta",)),
}
"""The same of losses of single answers."""

DIVERGENCES = {
    "reverse_kl": None,
    "forward_kl": "ForwardKL",
    "js_divergence": "JensenShannon",
    "alpha_divergence": "AlphaDivergence",
}
"""Divergences by TRL's name; None is what a loss has of itself."""

_WITHOUT_REFERENCE = {"orpo", "simpo", "cpo", "sft"}


def loss_section(recipe: Recipe) -> dict[str, Any]:
    """Settings of the loss."""
    losses = recipe.losses
    if recipe.objective == "kto":
        return {"loss": _loss(ANSWER_LOSSES[losses.names[0]], losses)}
    if recipe.objective == "dpo":
        return {"loss": _pair_loss(losses)}
    if recipe.objective == "reward":
        return {"center_rewards_coefficient": losses.center_rewards}
    return {"loss": {"class_path": "lion_lightning.losses.DFTLoss"}} if losses.names == ["dft"] else {}


def reference_section(recipe: Recipe) -> dict[str, Any]:
    """Settings of the reference; empty where the loss needs none."""
    losses = recipe.losses
    if recipe.objective not in ("dpo", "kto") or set(losses.names) <= _WITHOUT_REFERENCE:
        return {}
    if losses.reference_mixing is not None:
        alpha, steps = losses.reference_mixing
        options = {"alpha": alpha, "every_n_steps": steps}
        return {"reference": {"class_path": "lion_lightning.MixedReference", "init_args": options}}
    if losses.reference is not None:
        other = {"model": {"path": losses.reference}}
        return {"reference": {"class_path": "lion_lightning.CachedReference", "init_args": other}}
    # under adapters the base model is the reference: no second model, no cache
    name = "AdapterOffReference" if recipe.uses_lora else "CachedReference"
    return {"reference": {"class_path": f"lion_lightning.{name}"}}


def _pair_loss(losses: Losses) -> dict[str, Any]:
    """The only loss, or the weighted sum of several; in WPO's weights, if they are asked for."""
    names = list(losses.names)
    if losses.shared_length is not None:  # LD-DPO changes the log-probs of DPO's own loss
        names = ["ld" if name == "sigmoid" else name for name in names]
    weights = list(losses.weights or [1.0] * len(names))
    if losses.bco:  # LLaMA-Factory divides the sum by the sum of weights
        names, weights = [*names, "bco_pair"], [weight / (1 + losses.bco) for weight in [*weights, losses.bco]]
    if losses.likelihood and "cpo" not in names:  # which has the term itself
        names, weights = [*names, "sft"], [*weights, losses.likelihood]
    parts = [_loss(PAIR_LOSSES[name], losses) for name in names]
    loss = parts[0] if weights == [1.0] else _class("WeightedSum", {"losses": parts, "weights": weights})
    return _class("WPOLoss", {"loss": loss}) if losses.policy_weighted else loss


def _loss(known: tuple[str, tuple[str, ...]], losses: Losses) -> dict[str, Any]:
    name, arguments = known
    values: dict[str, Any] = {
        "beta": losses.beta,
        "label_smoothing": losses.label_smoothing or None,
        "gamma": losses.gamma,
        "tau": losses.discopop_tau,
        "desirable_weight": losses.desirable,
        "undesirable_weight": losses.undesirable,
        "divergence": _divergence(losses),
        "alpha": losses.shared_length if "shared_length" in arguments else losses.likelihood,
    }
    named = ["alpha" if each in ("shared_length", "likelihood") else each for each in arguments]
    return _class(name, {each: values[each] for each in named if values[each] is not None})


def _divergence(losses: Losses) -> dict[str, Any] | None:
    name = DIVERGENCES[losses.divergence]
    if name is None:
        return None
    # TRL's coefficient is 1 - alpha
    return _class(name, {"alpha": 1 - losses.divergence_alpha} if name == "AlphaDivergence" else {})


def _class(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    path = {"class_path": f"lion_lightning.losses.{name}"}
    return {**path, "init_args": arguments} if arguments else path
