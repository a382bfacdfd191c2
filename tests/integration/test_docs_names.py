"""Every name, path, link, command and option in README and docs exists."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from lion_lightning import (
    DPOModule,
    InfillDataModule,
    LoRASpec,
    OnlineDPOModule,
    OnPolicyDataModule,
    PolicySpec,
    PreferenceDataModule,
    SFTDataModule,
    SFTModule,
    TokenizerSpec,
)
from lion_lightning.cli import COMMANDS, TRAINING
from lion_lightning.distributed.same_settings import argument_names

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FOLDERS = "benchmarks|callbacks|configs|docs|examples|lion_lightning|tests"
SECTIONS: dict[str, tuple[type, ...]] = {
    "trainer": (Trainer,),
    "data": (SFTDataModule, InfillDataModule, PreferenceDataModule, OnPolicyDataModule),
    "model": (SFTModule, DPOModule, OnlineDPOModule),
    "policy": (PolicySpec,),
    "tokenizer": (TokenizerSpec,),
    "lora": (LoRASpec,),
}
"""What the keys below each key of a config are arguments of."""

OUTSIDE = (
    "builtins",
    "transformers",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.strategies",
    "lightning.pytorch.cli",
    "torch.optim.lr_scheduler",
)
"""Where else classes that the pages name may live."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def code(page: Path) -> list[str]:
    """Inline code, and the lines of code blocks; a line that ends in a backslash goes on."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```\S*\n(.*?)^```$", text, re.M | re.S)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    return [*inline, *(line for block in blocks for line in block.splitlines())]


@cache
def exists(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@cache
def arguments(section: str) -> set[str]:
    """Names that may stand below a key of a config."""
    return {name for kind in SECTIONS[section] for name in argument_names(kind)} | {"class_path", "init_args"}


@cache
def anchors(page: Path) -> set[str]:
    """What links to a page's headings end in."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_dotted_names_import(page: Path) -> None:
    names = set(re.findall(r"\b(?:lion_lightning|examples)(?:\.[A-Za-z_]\w*)+", page.read_text("utf-8")))
    names = {name for name in names if not name.endswith((".py", ".md", ".yaml"))}
    assert not [name for name in sorted(names) if not exists(name)]


@pages
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pages
def test_paths_exist(page: Path) -> None:
    missing = []
    for text in code(page):
        for path in re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w", text):
            if not (ROOT / path).exists() and not [*ROOT.glob(path + "*")]:
                missing.append(path)
        if re.fullmatch(r"(?!utils/)[\w/]+/\w+\.py", text):  # within the package; utils/ is of another project
            missing += [] if (ROOT / text).exists() or (ROOT / "lion_lightning" / text).exists() else [text]
        if re.fullmatch(r"test_\w+\.py", text) and not [*(ROOT / "tests").rglob(text)]:
            missing.append(text)
    assert not missing


@pages
def test_commands_and_their_options_exist(page: Path) -> None:
    wrong = []
    for text in code(page):
        for name, rest in re.findall(r"(?:^|\s|bin/)lion ([a-z]+)\b([^#\n|;]*)", text):
            options = re.findall(r"\s--([\w.-]+)", rest)
            wrong += [f"lion {name} --{option}" for option in options if not is_option(name, option)]
            if name not in {*COMMANDS, *TRAINING}:
                wrong.append(f"lion {name}")
    assert not wrong


def is_option(command: str, option: str) -> bool:
    section, _, key = option.partition(".")
    if key:  # a key of a config; `lion run FILE --STAGE.trainer.max_steps 3` begins with the name of a stage
        if command == "run" and section not in SECTIONS:
            section, _, key = key.partition(".")
        if section in {"sampler", "judge"}:  # keys of a class that the command line names
            return command in {"answers", "evaluate"}
        return section in SECTIONS and key.split(".")[0] in arguments(section)
    folder = ROOT / "lion_lightning/tools" / (COMMANDS | TRAINING)[command][0]
    lightning = {"ckpt_path", "print_config", "help", "config", "seed_everything", *SECTIONS}
    given = re.compile(rf'"--{option}"|^    {option}: ', re.M)  # of argparse; of a function that jsonargparse reads
    return option in lightning or any(given.search(path.read_text("utf-8")) for path in folder.glob("*.py"))


@pages
def test_class_names_exist(page: Path) -> None:
    named = {match[1] for text in code(page) if (match := re.fullmatch(r"([A-Z]\w*[a-z]\w*[A-Z]\w*)(\(.*\))?", text))}
    assert not {name for name in named - classes() if not any(hasattr(import_module(home), name) for home in OUTSIDE)}


@cache
def classes() -> set[str]:
    """Classes of the package and of the examples in docs, which define their own."""
    files = [*(ROOT / "lion_lightning").rglob("*.py"), *(ROOT / "callbacks").rglob("*.py"), *PAGES]
    files += (ROOT / "examples").rglob("*.py")
    return {name for path in files for name in re.findall(r"^class (\w+)", path.read_text("utf-8"), re.M)}


@pages
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    named = {name for text in code(page) for name in re.findall(r"^make ([a-z-]+)", text.strip())}
    assert named <= targets


@pages
def test_words_of_code_occur_in_the_repository(page: Path) -> None:
    named = {text for text in code(page) if re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", text)}
    missing = set() if page.stem == "comparison" else named - words()  # that one quotes the code of other tools
    assert missing <= {"image_path", "kto_pair"}  # a user's column; a loss that TRL had


@cache
def words() -> set[str]:
    files = [path for folder in FOLDERS.split("|") for path in (ROOT / folder).rglob("*.*")]
    files += [*(ROOT / "callbacks").rglob("*.py"), ROOT / "pyproject.toml"]
    texts = [path.read_text("utf-8") for path in files if path.suffix in {".py", ".yaml", ".toml"}]
    return {word for text in texts for word in re.findall(r"\w+", text)}


@pages
def test_keys_of_configs_are_arguments(page: Path) -> None:
    wrong = []
    for text in code(page):
        key = re.match(rf"({'|'.join(SECTIONS)})\.([a-z_]\w*)\b(?![/(])", text.strip())
        if key and key[2] not in arguments(key[1]) and not any(hasattr(kind, key[2]) for kind in SECTIONS[key[1]]):
            wrong.append(text)
    assert not wrong


def test_the_checks_find_what_is_wrong() -> None:
    assert exists("lion_lightning.losses.SigmoidLoss")
    assert not exists("lion_lightning.losses.NoSuchLoss")
    assert not exists("lion_lightning.no_such_module.Name")
    assert is_option("fit", "data.max_length")
    assert is_option("run", "dpo.trainer.max_steps")
    assert not is_option("fit", "data.max_lenght")
    assert not is_option("plan", "no_such_option")
    assert {field.name for field in fields(PolicySpec)} <= arguments("policy")
