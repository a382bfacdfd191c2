"""``lion plan``: estimates of memory per GPU and time per step of a config."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from typing_extensions import override

from lion_lightning.callbacks.optimization.fused_backward import steps_within_backward
from lion_lightning.modules.group import GroupModule
from lion_lightning.modules.online import OnlineModule
from lion_lightning.modules.policy_gradient import PolicyGradientModule
from lion_lightning.planning.job import Job, job_of
from lion_lightning.planning.memory import GIB
from lion_lightning.planning.sharding_layout import placements, with_recompute_of
from lion_lightning.processes.command_line import CommandParser
from lion_lightning.references.cached import CachedReference
from lion_lightning.tools.pipeline.stage_config import build_for_stage
from lion_lightning.tools.plan.report import PlanReport
from lion_lightning.tools.plan.step_time import Machine
from lion_lightning.tools.train.lightning_cli import LionCLI


class SettingsCLI(LionCLI):
    """Instantiates model and data module of a config, but no trainer, whose devices are not on this machine."""

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return self._get(self.config_init, "trainer")


def main(arguments: list[str]) -> None:
    """Run the command; no weights are loaded.

    Args:
        arguments: Command line after ``lion plan``.

    Raises:
        ValueError: The config cannot be estimated.
    """
    options, rest = _parser().parse_known_args(arguments)
    for name in ("memory", "tflops", "mfu", "bandwidth"):
        if not getattr(options, name) > 0:
            raise ValueError(f"--{name} is {getattr(options, name)}; give a number above 0")
    # Options that are unknown here are those of `lion fit`.
    cli = build_for_stage(rest, options.stage, SettingsCLI)
    settings: Any = cli.trainer
    gpus = _gpus(settings, options.gpus)
    job = _job(cli, settings, options)
    # Between epochs a sampler's engine has its share of a GPU's memory.
    samplers = [getattr(callback, "sampler", None) for callback in settings.callbacks or ()]
    plan = PlanReport(
        job,
        placements(settings.strategy, gpus, packed=job.spec.quantization is not None),
        Machine(options.tflops, options.mfu, options.bandwidth),
        memory=round(options.memory * GIB),
        cached=_cached(cli.model),
        rounds=isinstance(cli.model, OnlineModule),
        sampler=max((getattr(sampler, "gpu_memory_utilization", 0.0) for sampler in samplers), default=0.0),
    )
    print("\n".join(plan.lines()))


def _cached(module: Any) -> list[str]:
    """Models whose log-probs are computed once, in words."""
    found = ["the reference"] if isinstance(getattr(module, "reference", None), CachedReference) else []
    if isinstance(module, PolicyGradientModule):
        found.append("the policy that sampled, where a round makes several steps")
    return found


def _parser() -> CommandParser:
    own = CommandParser(
        prog="lion plan",
        usage="lion plan -c CONFIG [--stage NAME] [--gpus N] [--memory GIB] [any option of lion fit]",
        description="Estimate memory per GPU and time per step of a config under each strategy, without any GPU.",
        epilog="Of a pipeline file one stage: lion plan -c configs/pipeline.yaml --stage dpo. "
        "Example: lion plan -c configs/sft.yaml --gpus 8 --memory 80",
    )
    own.add_argument("--stage", metavar="NAME", help="stage of the pipeline, where CONFIG is a file of lion run")
    own.add_argument(
        "--gpus",
        type=int,
        help="number of GPUs (by default the config's devices x num_nodes; for `auto` those visible here, or 1)",
    )
    own.add_argument(
        "--tokens", type=int, help="tokens per micro-batch (batch_size x row_length of the config's data module)"
    )
    own.add_argument("--answers", type=int, help="answers to a prompt, where rows have some (as the module says)")
    own.add_argument("--memory", type=float, default=80.0, help="GiB per GPU (80)")
    own.add_argument("--overhead", type=float, default=2.0, help="GiB for CUDA, NCCL and fragmentation (2: a guess)")
    own.add_argument(
        "--tflops",
        type=float,
        default=989.0,
        help="peak TFLOP/s of a GPU in the run's precision (989: bf16 on an H100)",
    )
    own.add_argument("--mfu", type=float, default=0.4, help="model FLOPs utilization (0.4: a guess)")
    own.add_argument("--bandwidth", type=float, default=50.0, help="GB/s that a GPU sends to the others (50: a guess)")
    return own


def _gpus(settings: Any, given: int | None) -> int:
    """GPUs of the command line, else of the config's trainer; of `auto`, those that are visible, or else one."""
    if given is not None:
        if given < 1:
            raise ValueError(f"--gpus is {given}; give 1 or more")
        return given
    devices = settings.devices
    if devices in (None, "auto", -1, "-1"):  # those of the machine that will train, which may be another one
        devices = max(1, torch.cuda.device_count())
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else 0
    if count < 1:
        raise ValueError(f"trainer.devices is {devices}: set the number of GPUs with --gpus N")
    return count * int(settings.num_nodes or 1)


def _job(cli: LionCLI, settings: Any, options: argparse.Namespace) -> Job:
    data: Any = cli.datamodule
    tokens = options.tokens or getattr(data, "row_length", 0) * getattr(data, "batch_size", 0)
    if tokens < 1:
        raise ValueError(
            f"{type(data).__name__} has no batch_size and row_length; give the tokens per micro-batch with --tokens N"
        )
    if options.answers is not None and options.answers < 1:
        raise ValueError(f"--answers is {options.answers}; give at least 1")
    # A round's groups have all sampled answers; its pairs, two of them.
    sampled = [getattr(callback, "num_samples", None) for callback in settings.callbacks or ()]
    groups = max((number for number in sampled if number), default=None) if isinstance(cli.model, GroupModule) else None
    job = job_of(
        cli.model,
        tokens,
        getattr(data, "max_length", tokens),
        str(settings.precision or "32-true"),
        options.answers or groups,
        accumulate=int(settings.accumulate_grad_batches or 1),
        fused=steps_within_backward(settings.callbacks or ()),
        overhead=round(options.overhead * GIB),
    )
    return with_recompute_of(settings.strategy, job)
