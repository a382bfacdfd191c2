"""Guards around every test: no network, no shared caches, no leaked state; marked tests skip where they can't run."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

# Libraries read these when they are imported, so they are set before any test file is; children inherit them. None is
# imported here: the process that only hands tests out to others needs none, and they start when it has read this file.
SCRATCH = tempfile.mkdtemp(prefix="lion-tests-")
os.environ |= {
    "LION_TESTS": SCRATCH,  # what several tests start from (tests/demo.py)
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HOME": os.path.join(SCRATCH, "huggingface"),
    "LION_CACHE": os.path.join(SCRATCH, "lion"),
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # tiny tensors: more threads cost more than they give, and change the order of sums
}

# A mark's test runs only where this holds; the text is the reason shown when it does not.
NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "gpu": (lambda: import_module("torch").cuda.is_available(), "needs a CUDA device"),
    "vllm": (lambda: find_spec("vllm") is not None, "needs vLLM: pip install 'lion-lightning[vllm]'"),
    "distributed": (
        lambda: import_module("torch.distributed").is_available(),
        "needs a torch build with torch.distributed",
    ),
}


def pytest_configure() -> None:
    """Take the signals that tests send: a shell has what it starts in the background, or by nohup, ignore them."""
    for signum, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(signum) == signal.SIG_IGN:
            signal.signal(signum, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests that are given more time than the others: at the end, one worker would wait for them."""
    items.sort(key=lambda item: -max([0.0, *(mark.args[0] for mark in item.iter_markers("timeout") if mark.args)]))


def pytest_collection_finish() -> None:
    import_module("lightning.pytorch")  # its log goes to the stderr of this moment; a test's is closed after the test
    registry: Any = import_module("lightning.fabric.utilities.registry")
    registry.entry_points = cache(registry.entry_points)  # each Trainer reads all packages' metadata else
    gc.collect()
    # Libraries and tests are never garbage. Going through them again and again took a tenth of the time of all tests.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers():
        works, reason = NEEDS.get(mark.name, (lambda: True, ""))
        if not works():
            pytest.skip(reason)


def pytest_unconfigure() -> None:
    shutil.rmtree(SCRATCH, ignore_errors=True)


@pytest.fixture(autouse=True)
def global_state_is_restored() -> Iterator[None]:
    """Give every test the same seeds, and put back what it changed in the process."""
    import numpy as np
    import torch

    environment, threads, dtype = dict(os.environ), torch.get_num_threads(), torch.get_default_dtype()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
    if os.environ != environment:
        os.environ.clear()
        os.environ.update(environment)
