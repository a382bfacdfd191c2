"""What a test starts is gone when it ends, and what that has started, too."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.vllm.engines import end_group

SERVER = """
import subprocess, sys
engine = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"])
print(engine.pid, flush=True)
engine.wait()
"""


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_engine_of_a_server_ends_with_it() -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    engine = int(next(line for line in process.stdout if line.strip().isdigit()))
    assert is_alive(engine)
    end_group(process, seconds=5)
    until = time.monotonic() + 5
    while is_alive(engine) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_alive(engine)
    assert process.returncode is not None
    process.stdout.close()
