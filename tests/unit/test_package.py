"""The package as users get it: a bare checkout, an editable install, a wheel built from the source distribution."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a command; a failure shows what it printed."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, and of the examples, which are not; so no build leaves files in the repository."""
    copy = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("lion_lightning", "callbacks", "examples"):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    return copy


@pytest.fixture(scope="module")
def built(checkout: Path) -> Path:
    """The folder with the sdist and the wheel that was built from it."""
    pytest.importorskip("build")
    run(sys.executable, "-m", "build", "--no-isolation", checkout, cwd=checkout)
    return checkout / "dist"


def fresh_python(folder: Path) -> Path:
    """Interpreter of a new environment that sees the libraries of the running one, but not its editable installs."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    # Python does not read the .pth files of a folder that a .pth file names; those are what make installs editable.
    (Path(packages) / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return python


def install(python: Path, *what: str | Path) -> None:
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--ignore-installed", *what, cwd=python.parent)


def file_of(python: str | Path, module: str, cwd: Path, **environment: str) -> Path:
    """Where an interpreter finds a module, which it doesn't import: that takes six seconds."""
    code = f"import importlib.util; print(importlib.util.find_spec({module!r}).origin)"
    return Path(run(python, "-c", code, cwd=cwd, **environment))


def test_the_link_is_relative_so_that_a_moved_checkout_keeps_it() -> None:
    assert os.readlink(ROOT / "lion_lightning" / "callbacks") == os.path.join("..", "callbacks")


def test_import_callbacks_from_the_root_says_the_right_name() -> None:
    code = "import callbacks"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: import this package as lion_lightning.callbacks" in done.stderr


@pytest.mark.slow
def test_a_bare_checkout_resolves_callbacks_through_the_link(checkout: Path, tmp_path: Path) -> None:
    found = file_of(sys.executable, "lion_lightning.callbacks", tmp_path, PYTHONPATH=str(checkout))
    assert found == checkout / "lion_lightning" / "callbacks" / "__init__.py"
    assert found.resolve() == checkout / "callbacks" / "__init__.py"


@pytest.mark.slow
def test_an_editable_install_resolves_the_same_files_as_a_bare_checkout(checkout: Path, tmp_path: Path) -> None:
    python = fresh_python(tmp_path / "venv")
    install(python, "--editable", checkout)
    assert file_of(python, "lion_lightning.callbacks", tmp_path) == checkout / "lion_lightning/callbacks/__init__.py"


@pytest.mark.slow
def test_the_sdist_and_the_wheel_hold_callbacks_templates_types_and_licence(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as wheel_file, tarfile.open(sdist) as sdist_file:
        in_wheel = set(wheel_file.namelist())
        in_sdist = {name.partition("/")[2] for name in sdist_file.getnames()}
    package = {"py.typed", "callbacks/__init__.py", "models/templates/chatml.jinja"}
    assert {f"lion_lightning/{name}" for name in package} <= in_wheel & in_sdist
    assert any(name.endswith("licenses/LICENSE") for name in in_wheel)
    assert {name.split("/")[0] for name in in_wheel} == {"lion_lightning", "lion_lightning-0.1.0.dist-info"}
    assert {"LICENSE", "pyproject.toml", "README.md"} <= in_sdist
    assert not [name for name in in_wheel | in_sdist if "examples" in name or "nonfree" in name]  # of unclear rights


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(built: Path, tmp_path: Path) -> None:
    python = fresh_python(tmp_path / "venv")
    install(python, *built.glob("*.whl"))
    callbacks = file_of(python, "lion_lightning.callbacks", tmp_path)
    assert callbacks.is_relative_to(tmp_path / "venv")
    assert not callbacks.parent.is_symlink()
    run(python, "-c", "import lion_lightning.callbacks", cwd=tmp_path)
    reads = "from lion_lightning.models.tokenizer import read_template; print(read_template('chatml'))"
    assert "<|im_start|>" in run(python, "-c", reads, cwd=tmp_path)
    assert (
        run(python, "-c", "import importlib.metadata as m; print(m.version('lion-lightning'))", cwd=tmp_path) == "0.1.0"
    )
    for command in ([python.parent / "lion"], [python, "-m", "lion_lightning"]):
        assert "fit" in run(*command, "--help", cwd=tmp_path)
