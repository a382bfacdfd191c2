"""The data of a training as plain data, for model cards and the start-up summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.selection.mixture import Mixture
from lion_lightning.data.sources.source import Source

if TYPE_CHECKING:
    from lion_lightning.data.base import PackedDataModule


def describe_data(data: PackedDataModule) -> dict[str, Any]:
    """Settings and sources of a data module, with what its filters and its sources were found to hold, once set up."""
    return {
        **data.settings(),
        "validation_share": data.validation_share,
        "seed": data.seed,
        "packing": type(data.packing).__name__,
        "sources": _with_digests(data.sources, data.digests),
        "validation_sources": _with_digests(data.validation or (), data.digests),
        "document_filters": data.document_filters.to_dict(),
        "train": [report.to_dict() for report in data.reports],
        "validation": [report.to_dict() for report in reports_of(data.validation_mixture)],
    }


def describe_messages(data: PackedDataModule) -> dict[str, list[str]]:
    """Messages about the rows of each source; those about all of them are under ``all``."""
    reports = [*data.reports, *reports_of(data.validation_mixture)]
    by_source = {report.name: report.messages.describe(report.rows) for report in reports}
    return by_source | ({"all": notes} if (notes := data.notes()) else {})


def reports_of(mixture: Mixture | None) -> list[SourceReport]:
    """Reports on the sources of a mixture; none before it is made."""
    return mixture.reports if mixture else []


def _with_digests(sources: Sequence[Source], digests: dict[int, str]) -> list[dict[str, Any]]:
    """Settings of each source, with the digest of its examples once they are read."""
    described = []
    for source in sources:
        digest = digests.get(id(source))
        described.append(source.description() | ({"digest": digest} if digest else {}))
    return described
