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
        cached: Models whose log-probs are computed once and kept on disk, in words; empty for none.
        rounds: True if that is done for each round of sampling.
    """

    job: Job
    placements: Sequence[Placement]
    machine: Machine
    memory: int
    sampler: float = 0.0
    cached: Sequence[str] = ()
    rounds: bool = False

    @cached_property
    def peaks(self) -> list[MemoryEstimate]:
        """Peak memory of a GPU under each placement."""
        return [placement.peak(self.job) for placement in tqdm(self.placements, "strategies", leave=False)]

    def lines(self) -> list[str]:
        """Lines of the plan."""
        columns = [self._column(*each) for each in zip(self.placements, self.peaks, strict=True)]
        columns[0]["GiB per GPU"] += " (config's)"
        table = []
        for title in columns[0]:
            cells = "".join(f"{column[title]:>{WIDTH}}" for column in columns)
            table.append(f"{title:<20}{cells}" if title else "")
        return [*self._settings(), "", *table]

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
        # Rows are filled up to their length, so that this is the most.
        total = job.tokens * job.accumulate * count
        yield (
            f"step     {job.tokens:,} tokens per micro-batch{_shape(job)} x {job.accumulate} accumulated "
            f"x {count} GPUs: up to {total:,} tokens"
        )
        if self.cached:
            when = "before the first step of each round" if self.rounds else "before the first step"
            yield (
                f"cache    log-probs of {' and '.join(self.cached)}: 4 bytes on disk per token of an answer (4.0 GB "
                f"for 10^9), and a forward each {when}"
            )
        own = self.machine
        yield (
            f"assumed  {self.memory / GIB:.0f} GiB per GPU, {self.job.overhead / GIB:.1f} of them for frameworks; "
            f"{own.tflops:.0f} TFLOP/s at {own.mfu:.0%}; {own.bandwidth:.0f} GB/s to the others"
        )

    def _column(self, placement: Placement, peak: MemoryEstimate) -> dict[str, str]:
        """Cells of a placement by the titles of their rows; an empty title is an empty line."""
        sizes = {TITLES.get(part, part): size for part, size in peak.parts.items()}
        sizes["at the peak"] = peak.total
        if self.sampler:
            sizes["while vLLM is awake"] = self._sampling(peak)
        time = step_time(self.job, placement, self.machine)
        return {
            "GiB per GPU": placement.name,
            **{title: f"{size / GIB:.2f}" for title, size in sizes.items()},
            "fits": "yes" if self.fits(peak) else "NO",
            "the peak is in": peak.moment.removesuffix(" backward"),
            "": "",
            "compute seconds": f"{time.compute:.2f}",
            "traffic seconds": f"{time.traffic:.2f}",
            # At most: the data, the host and what does not overlap are left out.
            "tokens/s at most": f"{time.tokens / time.seconds:,.0f}",
        }

    def _sampling(self, peak: MemoryEstimate) -> int:
        """Memory between epochs: no gradients or activations, but a sampler's engine."""
        held = peak.weights + peak.optimizer + peak.reference + peak.overhead
        return held + round(self.sampler * self.memory) if self.sampler else 0


def _shape(job: Job) -> str:
    """How many answers the prompts of its rows have; nothing for documents."""
    prompts = sum(parent < 0 for parent in job.parents)
    answers = (len(job.parents) - prompts) // prompts - job.mismatched
    if not answers:
        return ""
    return f" ({answers} to a prompt{', and one of another' if job.mismatched else ''})"
