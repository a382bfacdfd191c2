"""The data of a training as plain data, for a model card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lion_lightning.data.sources.source import Source

if TYPE_CHECKING:
    from lion_lightning.data.base import PackedDataModule


def describe_data(data: PackedDataModule) -> dict[str, Any]:
    """Settings and sources of a data module, with what its filters and its sources were found to hold, once set up."""
    validation = data.validation_mixture.reports if data.validation_mixture else []
    return {
        **data.settings(),
        "validation_share": data.validation_share,
        "seed": data.seed,
        "packing": type(data.packing).__name__,
        "sources": _with_digests(data.sources, data.digests),
        "validation_sources": _with_digests(data.validation or (), data.digests),
        "document_filters": data.document_filters.to_dict(),
        "train": [report.to_dict() for report in data.reports],
        "validation": [report.to_dict() for report in validation],
    }


def _with_digests(sources: Sequence[Source], digests: dict[int, str]) -> list[dict[str, Any]]:
    """Settings of each source, with the digest of its examples once they are read."""
    described = []
    for source in sources:
        digest = digests.get(id(source))
        described.append(source.description() | ({"digest": digest} if digest else {}))
    return described
