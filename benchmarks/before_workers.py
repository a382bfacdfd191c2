"""An earlier commit's sides of the training measures, workers of ``interleaved``: ``before_workers.py SIDE JOB``.

The library and ``training_workers.py`` are those of the job's ``checkout``; the token ids are made by this one.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

from batches import steps_of
from training_workers import serve


def workers_of(checkout: str) -> ModuleType:
    """The earlier ``training_workers``, which imports its own library.

    Args:
        checkout: Folder of the commit's files.
    """
    sys.path.insert(0, checkout)
    spec = importlib.util.spec_from_file_location("workers_before", Path(checkout, "benchmarks", "training_workers.py"))
    assert spec is not None
    assert spec.loader is not None
    workers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(workers)
    workers.steps_of = steps_of  # type: ignore[attr-defined]
    return workers


if __name__ == "__main__":
    before = workers_of(json.loads(sys.argv[2])["checkout"])
    serve({"before_ours": before.ours, "before_ours_reference": before.ours_reference})
