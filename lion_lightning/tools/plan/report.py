"""The printed plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from tqdm import tqdm

from lion_lightning.planning.job import Job
from lion_lightning.planning.memory import GIB, MemoryEstimate, Placement
from lion_lightning.tools.plan.step_time import Machine, step_time

WIDTH = 18
TITLES = {"in_flight": "gathered, copied", "activations": "activations, temps", "optimizer": "optimizer state"}


@dataclass(frozen=True)
class PlanReport:
    """A job under several placements.

    Attributes:
        job: The training job.
        placements: Possible shardings over devices; the first is the config's.
        machine: Assumed speed of a GPU.
        memory: Bytes per GPU.
        sampler: Share of the memory that a sampler's engine uses between epochs.
    """

    job: Job
    placements: Sequence[Placement]
    machine: Machine
    memory: int
    sampler: float = 0.0

    @cached_property
    def peaks(self) -> list[MemoryEstimate]:
        """Peak memory of a GPU under each placement."""
        return [placement.peak(self.job) for placement in tqdm(self.placements, "strategies", leave=False)]

    def lines(self) -> list[str]:
        """Lines of the plan."""
        return [*self._settings(), "", *self._memory(), "", *self._time()]

    def fits(self, peak: MemoryEstimate) -> bool:
        """True if a GPU has enough memory for training, and for sampling between epochs."""
        return max(peak.total, self._sampling(peak)) <= self.memory

    def _settings(self) -> Iterator[str]:
        job, spec, count = self.job, self.job.spec, self.placements[0].devices
        extras = ["NF4" if spec.quantization else spec.dtype, job.precision]
        if spec.lora:
            extras.append("LoRA")
        if spec.recompute != "none":
            extras.append(f"recompute: {spec.recompute}")
        size, trained = (sum(p.numel() for p in part) / 1e9 for part in (job.model.parameters(), job.trained))
        yield f"policy   {size:.3f} G weights, {trained:.3f} G of them trained; {', '.join(extras)}"
        total = job.tokens * job.accumulate * count
        yield (
            f"step     {job.tokens:,} tokens per micro-batch x {job.accumulate} accumulated x {count} GPUs: "
            f"up to {total:,} tokens"
        )
        own = self.machine
        yield (
            f"assumed  {self.memory / GIB:.0f} GiB per GPU, {self.job.overhead / GIB:.1f} of them for frameworks; "
            f"{own.tflops:.0f} TFLOP/s at {own.mfu:.0%}; {own.bandwidth:.0f} GB/s to the others"
        )

    def _memory(self) -> Iterator[str]:
        names = [placement.name for placement in self.placements]
        yield _row("GiB per GPU", [f"{names[0]} (config's)", *names[1:]])
        for part in self.peaks[0].parts:
            yield _gib_row(TITLES.get(part, part), [peak.parts[part] for peak in self.peaks])
        yield _gib_row("at the peak", [peak.total for peak in self.peaks])
        if self.sampler:
            yield _gib_row("while vLLM is awake", [self._sampling(peak) for peak in self.peaks])
        yield _row("fits", ["yes" if self.fits(peak) else "NO" for peak in self.peaks])
        yield _row("the peak is in", [peak.moment.removesuffix(" backward") for peak in self.peaks])

    def _time(self) -> Iterator[str]:
        times = [step_time(self.job, placement, self.machine) for placement in self.placements]
        yield _row("compute seconds", [f"{time.compute:.2f}" for time in times])
        yield _row("traffic seconds", [f"{time.traffic:.2f}" for time in times])
        yield _row("tokens/s at most", [f"{time.tokens / time.seconds:,.0f}" for time in times])

    def _sampling(self, peak: MemoryEstimate) -> int:
        """Memory between epochs: no gradients or activations, but a sampler's engine."""
        held = peak.weights + peak.optimizer + peak.reference + peak.overhead
        return held + round(self.sampler * self.memory) if self.sampler else 0


def _row(title: str, cells: Sequence[str]) -> str:
    return f"{title:<20}" + "".join(f"{cell:>{WIDTH}}" for cell in cells)


def _gib_row(title: str, sizes: Sequence[int]) -> str:
    return _row(title, [f"{size / GIB:.2f}" for size in sizes])
