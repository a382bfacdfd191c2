"""Files that run code in whoever reads them carelessly: each makes a file, the canary, where it does."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Code:
    """Makes the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def _pickled(canary: Path) -> bytes:
    return pickle.dumps(Code(canary))


def _torch(canary: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {}, "lion": Code(canary)}, file)
    return file.getvalue()


def _old_torch(canary: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {}, "lion": Code(canary)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def _numpy(canary: Path) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, keys=np.array([Code(canary)], dtype=object))
    return file.getvalue()


def _yaml(canary: Path) -> bytes:
    return f'!!python/object/apply:os.mkdir ["{canary}"]\n'.encode()


def _tar(canary: Path) -> bytes:
    """Unpacked, it leaves its folder; it also is a checkpoint of torch before 1.0."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in (("../canary/x", b""), (str(canary / "x"), b""), ("sys_info", _pickled(canary))):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def _zip(canary: Path) -> bytes:
    """Unpacked, it leaves its folder."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../canary/x", "")
        archive.writestr(str(canary / "x"), "")
        archive.writestr("archive/data.pkl", _pickled(canary))
    return file.getvalue()


def _python(canary: Path) -> bytes:
    return f"import os; os.mkdir({str(canary)!r})\n".encode()


KINDS: dict[str, Callable[[Path], bytes]] = {
    "pickle": _pickled,
    "torch": _torch,
    "old torch": _old_torch,
    "numpy": _numpy,
    "yaml": _yaml,
    "tar": _tar,
    "zip": _zip,
    "python": _python,
}
"""What the files hold, by kind."""
