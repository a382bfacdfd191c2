"""``python -m lion_lightning.pipeline FOLDER [START]``: one stage, as ``lion run`` starts it."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from lion_lightning.pipeline.stage import run_stage
from lion_lightning.stopping import STOP


def stop_when_orphaned(parent: int) -> None:
    """Tell this process to stop when `lion run` is gone, killed by a signal that it could not pass on.

    Args:
        parent: Process of `lion run`.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=stop_when_orphaned, args=(os.getppid(),), daemon=True).start()
    folder, *start = sys.argv[1:]
    with STOP.listening(), STOP.interrupts():
        sys.exit(run_stage(Path(folder), Path(start[0]) if start else None))
