"""``python -m lion_lightning.tools.pipeline [FOLDER [START]]``: one stage as ``lion run`` starts it, or the checks.

Little is imported before signals are handled, so that one that comes early leaves no traceback.
"""

import os
import signal
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

from lion_lightning.processes.entry_point import run_guarded
from lion_lightning.processes.stopping import STOP, default_interrupts
from lion_lightning.tools.pipeline.stage import run_stage


def stop_when_orphaned(parent: int) -> None:
    """Tell this process to stop when `lion run`, its parent, is gone, killed by a signal that it could not pass on."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def run(arguments: list[str]) -> int:
    """Run a stage, or the checks.

    Args:
        arguments: Folder of the stage, and of the one that it starts from; none for the checks.

    Returns:
        The exit code.
    """
    with STOP.handle_interrupts():
        if arguments:
            return run_stage(Path(arguments[0]), Path(arguments[1]) if arguments[1:] else None)
        import_module("lion_lightning.tools.pipeline.checks.before_training").main()
    return 0


if __name__ == "__main__":
    default_interrupts()
    threading.Thread(target=stop_when_orphaned, args=(os.getppid(),), daemon=True).start()
    # `lion run` prints on the terminal that it was stopped; a stage's fit prints it in its log.
    sys.exit(run_guarded(lambda: run(sys.argv[1:]), print_stop=False))
