"""Notebooks: run from top to bottom, and shown as pages with what their cells printed."""

from __future__ import annotations

import os
import re
import tempfile
from functools import cache
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

CELL_SECONDS = 600
"""After which a cell counts as hanging."""

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@cache
def executed(path: Path) -> NotebookNode:
    """A notebook with the outputs of its cells, which ran in an empty folder.

    Args:
        path: The notebook's file, which stays as it is.

    Raises:
        CellExecutionError: A cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{folder}/kernel")
        client = NotebookClient(notebook, km=kernel, timeout=CELL_SECONDS, resources={"metadata": {"path": folder}})
        # One thread: next to other work, the threads of a small model wait for each other most of the time.
        settings = {"IPYTHONDIR": f"{folder}/ipython", "JUPYTER_COLUMNS": "80", "OMP_NUM_THREADS": "1"}
        return client.execute(env={**os.environ, **settings})


def printed(cell: NotebookNode) -> str:
    """Text that a cell wrote or shows, without progress and warnings, which go to stderr."""
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            texts.append(output.text)
        elif output.output_type in {"display_data", "execute_result"}:
            texts.append(output.data["text/plain"] + "\n")
    return ESCAPES.sub("", "".join(texts)).strip("\n")


def as_markdown(notebook: NotebookNode) -> str:
    """A notebook as a page."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        if text := printed(cell):
            parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"
