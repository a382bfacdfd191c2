"""CodeGen2's span corruption (arXiv 2305.02309)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from lion_lightning.data.infill.corruption import Corrupted, Corruption, File, SpecialTokens

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SpanInfill(Corruption):
    """Spans of a file are masked and follow behind it, each after its mask: CodeGen2 (arXiv 2305.02309).

    ``gap_0 <mask_1> gap_1 ... <mask_k> gap_k EOS <sep> <mask_1> span_1 <eom> ... <mask_k> span_k <eom>``. The layout of
    one span is that of CodeGen2's model card. How spans are drawn was not found; here a share of the tokens, uniform
    from 0 to 1, is masked, in spans of uniform lengths at uniform places with at least one token between them.

    Args:
        spans: Most spans of a file.
        mask: Token in place of a span; ``{}`` becomes its number, from 1.
        separator: Token between the file and the spans.
        end: Token behind each span, which stops the generation of an infill.

    Raises:
        ValueError: There is no span, or the masks of several spans are the same.
    """

    spans: int = 4
    mask: str = "<mask_{}>"
    separator: str = "<sep>"
    end: str = "<eom>"

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.spans < 1:
            raise ValueError(f"SpanInfill: spans is {self.spans}; give at least 1")
        if self.spans > 1 and "{}" not in self.mask:
            raise ValueError(
                f"SpanInfill: mask is {self.mask!r} for all {self.spans} spans; put {{}} where their number stands"
            )

    @property
    @override
    def tokens(self) -> tuple[str, ...]:
        masks = [self.mask.replace("{}", str(number + 1)) for number in range(self.spans)]
        return self.separator, self.end, *masks

    @property
    @override
    def extra(self) -> int:
        return 3 * self.spans + 2  # two masks and an end for each span, EOS and the separator

    @override
    def apply(self, file: File, special: SpecialTokens, rng: np.random.Generator) -> Corrupted:
        starts, lengths = draw_spans(len(file.body), self.spans, rng)
        return self.lay_out(file, special, starts, lengths)

    def lay_out(self, file: File, special: SpecialTokens, starts: Lengths, lengths: Lengths) -> Corrupted:
        """Move spans behind the file.

        Args:
            file: A document.
            special: Ids of :attr:`tokens` and EOS.
            starts: First token of each span in the file's body, ascending; spans do not touch.
            lengths: Tokens of each span.
        """
        separator, end, masks = special.own[:1], special.own[1:2], special.own[2:]
        bounds = np.stack([starts, starts + lengths], axis=1).ravel()
        parts = np.split(file.body, bounds)  # gap_0, span_1, gap_1, ..., span_k, gap_k
        context, answer = [file.bos, parts[0]], []
        for number in range(len(starts)):
            mask, span, gap = masks[number : number + 1], parts[2 * number + 1], parts[2 * number + 2]
            context += [mask, gap]
            answer += [mask, span, end]
        return Corrupted(np.concatenate([*context, special.eos_ids(), separator]), np.concatenate(answer))


def draw_spans(size: int, most: int, rng: np.random.Generator) -> tuple[Lengths, Lengths]:
    """First tokens and lengths of the spans to mask in a file of at least 2 tokens.

    Args:
        size: Tokens of the file.
        most: Most spans.
        rng: Decides them.
    """
    left = masked = int(np.clip(round(rng.random() * size), 1, size - 1))
    lengths: list[int] = []
    while left:  # the last allowed span takes the rest
        lengths.append(left if len(lengths) == most - 1 else int(rng.integers(1, left + 1)))
        left -= lengths[-1]
    kept = size - masked
    # With a kept token between any two, there are kept + 1 places; spans beyond these are joined to the last.
    sizes = np.array([*lengths[:kept], *([sum(lengths[kept:])] if lengths[kept:] else [])], np.int64)
    sizes = rng.permutation(sizes)
    before = np.sort(rng.permutation(kept + 1)[: len(sizes)])  # kept tokens before each span, all different
    return before + np.cumsum(sizes) - sizes, sizes
