"""docs/security.md lists every reader with its hostile tests, and no reader that runs what it reads has slipped in."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from token import COMMENT, ENCODING, STRING

import pytest

import lion_lightning

PACKAGE = Path(lion_lightning.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted({*PACKAGE.rglob("*.py"), *(PACKAGE / "callbacks").rglob("*.py")})  # rglob may not enter a link

READERS = frozenset(
    """
    read_text read_bytes load_file safe_open from_pretrained get_config_dict ParquetFile load_from_disk load_dataset
    memory_map open_file open_stream cached_file fromfile read_table loads JSONDecoder Unpickler input HFLM
    """.split()  # noqa: SIM905
)
"""Calls, by their last name, that read a file, a reply or a text of others."""

UNSAFE = {
    r"\bpickle\.loads?\(|\bcloudpickle|\bdill\b|\bjoblib\.load|\bmarshal\.load|\bshelve\.": "unpickles",
    r"\bUnpickler\b": "unpickles",
    r"(?<![\w.])(?:eval|exec|compile|__import__)\(": "runs text",
    r"\bimport_module\(": "imports by name",
    r"shell=True|\bos\.system\(|\bos\.popen\(|\bgetoutput\(": "runs a shell",
    r"yaml\.(?:load|load_all|full_load|unsafe_load)\(": "makes objects of YAML",
    r"allow_pickle": "unpickles arrays",
    r"trust_remote_code=True|trust_remote_code: bool = True": "runs a model's code",
    r"\burlopen\(|\brequests\.|\bhttpx\.|\bsocket\.create": "opens addresses",
    r"\bEnvironment\(|\bTemplate\(|\.from_string\(": "renders jinja",
    r"extractall\(|\bunpack_archive\(|\btarfile\.": "unpacks archives",
    r"torch\.hub\.|\bhf_hub_download\(": "downloads",
}
"""What could run code of a file, and why each use that is there does not: by module."""

ALLOWED = {
    "__init__.py": {"imports by name": "its own public names"},
    "cli.py": {"imports by name": "modules of its own commands"},
    "errors.py": {"imports by name": "a class that the config has named"},
    "tools/train/config_file.py": {"makes objects of YAML": "with a loader of plain data"},
    "tools/train/null_settings.py": {"imports by name": "a class that the config has named"},
    "data/sources/transforming.py": {"imports by name": "a transform that the config names"},
    "models/chat_template.py": {"renders jinja": "it is only parsed"},
    "tools/pipeline/__main__.py": {"imports by name": "the module of a stage, named in the code"},
    "models/checkpoints/folders.py": {"unpickles": "classes that torch writes there, and no others"},
}
OWN = {
    "callbacks/monitors/peak_memory.py": "the kernel's account of the process",
    "tools/train/metrics_log.py": "the log that the same process writes",
    "tools/pipeline/status.py": "the log of a stage that it started, shown through printable()",
    "tools/models/check.py": "the tiny model that the same process has saved",
    "planning/sizes.py": "the system's account of this process",
    "tools/init/config.py": "templates of the package",
    "tools/completion/main.py": "templates of the package",
}
"""Modules that read nothing of others."""


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def reading_calls(tree: ast.Module) -> Iterator[str]:
    """Names of the calls in a module that read what others wrote."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "from_pretrained":  # it may be handed on uncalled
            yield node.attr
        if not isinstance(node, ast.Call):
            continue
        whole = ast.unparse(node.func)
        name = whole.rpartition(".")[2]
        arguments = [ast.unparse(value) for value in (*node.args, *(keyword.value for keyword in node.keywords))]
        # What the process itself has just written as text, and `read_text` of data.formats, which reads no file.
        own = name == "loads" and re.search(r"dumps\(|to_json_string\(|to_str\(", " ".join(arguments))
        if name in READERS and not own and not (name in ("read_text", "read_table") and "." not in whole):
            yield name
        elif whole in ("torch.load", "yaml.load", "json.load", "load", "csv.DictReader"):
            yield whole
        elif name == "open" and whole not in ("os.open", "fsspec.open"):
            modes = [text.strip("'\"") for text in arguments if re.fullmatch(r"['\"][rwab+x]{1,3}['\"]", text)]
            keywords = {keyword.arg for keyword in node.keywords}
            if whole == "open" or modes or keywords & {"encoding", "newline", "timeout"}:
                yield from [] if any(mode[0] in "wax" and "+" not in mode for mode in modes) else [whole]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def readers() -> dict[str, set[str]]:
    found = {name_of(path): set(reading_calls(parsed(path))) for path in FILES}
    return {name: calls for name, calls in found.items() if calls and name not in OWN}


def table_rows() -> list[list[str]]:
    text = (ROOT / "docs" / "security.md").read_text("utf-8").partition("## Every reader")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_module_that_reads_is_in_the_table() -> None:
    listed = {name for row in table_rows() for name in re.findall(r"`([\w/]+\.py)`", row[0])}
    missing = readers().keys() - listed
    assert not missing, f"{missing}: add a row to the table of docs/security.md, with a hostile test"
    assert listed <= set(map(name_of, FILES))


def test_every_row_of_the_table_names_hostile_tests_that_are_there() -> None:
    known = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    for row in table_rows():
        assert len(row) == 4, row
        named = re.findall(r"`(test_\w+)`", row[3])
        assert named, row[0]
        assert set(named) <= known, set(named) - known


def test_nothing_new_runs_what_it_reads() -> None:
    suspects = [path for path in FILES if any(re.search(pattern, path.read_text("utf-8")) for pattern in UNSAFE)]
    found = {name_of(path): unsafe(path.read_bytes()) - ALLOWED.get(name_of(path), {}).keys() for path in suspects}
    assert {name: what for name, what in found.items() if what} == {}, "see docs/security.md"


def unsafe(code: bytes) -> set[str]:
    """What a module does that could run what it reads; what its texts and comments say does not count."""
    found = tokenize.tokenize(io.BytesIO(code).readline)
    words = [(token.type, token.string) for token in found if token.type not in (STRING, COMMENT, ENCODING)]
    squeezed = re.sub(r"\s*([.(=])\s*", r"\1", tokenize.untokenize(words))
    return {what for pattern, what in UNSAFE.items() if re.search(pattern, squeezed)}


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("pickle . load(file)", "unpickles"),
        ("class A(pickle.Unpickler): pass", "unpickles"),
        ("x = eval(text)", "runs text"),
        ("subprocess.run(text, shell = True)", "runs a shell"),
        ("os.system(text)", "runs a shell"),
        ("yaml.load(text, Loader=yaml.Loader)", "makes objects of YAML"),
        ("np.load(file, allow_pickle=True)", "unpickles arrays"),
        ("load(path, trust_remote_code=True)", "runs a model's code"),
        ("with urlopen(url) as reply: pass", "opens addresses"),
        ("jinja2.Template(text)", "renders jinja"),
        ("tar.extractall(folder)", "unpacks archives"),
    ],
)
def test_each_danger_is_seen(code: str, what: str) -> None:
    assert unsafe(code.encode()) == {what}
    assert unsafe(f"# {code}\nx = {code!r}".encode()) == set()


def calls() -> Iterator[tuple[str, ast.Call]]:
    """All calls of the package, each with its place."""
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call):
                yield f"{name_of(path)}:{node.lineno}", node


def test_tensors_are_loaded_with_weights_only() -> None:
    for place, node in calls():
        if getattr(node.func, "attr", "") == "load" and ast.unparse(node.func) == "torch.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("weights_only") in ("True", "weights_only is not False"), place


def test_programs_are_started_from_lists_of_arguments() -> None:
    """No text of anybody becomes a command line."""
    for place, node in calls():
        if ast.unparse(node.func) in ("subprocess.run", "subprocess.Popen"):
            assert not any(keyword.arg == "shell" for keyword in node.keywords), place
            assert not isinstance(node.args[0], ast.Constant | ast.JoinedStr), place
