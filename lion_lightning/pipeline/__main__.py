"""``python -m lion_lightning.pipeline FOLDER [START]``: one stage, as ``lion run`` starts it."""

import sys
from pathlib import Path

from lion_lightning.pipeline.stage import run_stage

if __name__ == "__main__":
    folder, *start = sys.argv[1:]
    sys.exit(run_stage(Path(folder), Path(start[0]) if start else None))
