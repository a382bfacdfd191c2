"""The report of real runs in a headless browser: nothing runs, nothing is loaded, and it fits on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lion_lightning.tools.report import write_report
from tests.browser import Page, browsing, chromium
from tests.unit.tools.report.runs import STARTUP, curve, evaluate, finish, write

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no Chromium here: apt-get install chromium"),
]

SCREENS = {"phone": (390, 844), "desktop": (1280, 900)}
LONG = "<script>document.title = 'owned'</script>" + "w" * 3000


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two seeds and three stages, with words that no line can hold and answers that would run."""
    folder = tmp_path_factory.mktemp("run")
    kinds = ["spell", "sort", LONG] * 12
    for seed in (0, 1):
        for place, name in enumerate(("sft", "dpo", "online_dpo")):
            stage = folder / f"seed-{seed}" / name
            scores = [float((number + seed) % 7 <= place * 2) for number in range(36)]
            parts = {"right": scores, LONG: scores}
            evaluate(stage, scores, kinds, parts, answers=[LONG, "\u0634\u0644\u0627\u0645"] * 18)
            curve(stage, train__loss=[2.0, 1.0], val__loss=[2.0, 1.5], train__rewards__margin=[0.0, 1.0])
            write(stage / "startup.json", STARTUP)
            write(stage / "rounds" / "round-0000.json", {"metrics": {"on_policy/score": 0.5}})
            finish(stage)
    return write_report(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with browsing() as page:
        yield page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_the_page_fits_loads_nothing_and_says_the_headline_first(
    report: Path, browser: Page, screen: str, dark: bool
) -> None:
    width, height = SCREENS[screen]
    browser.open(report, width, height, dark)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.requests() == [report.as_uri()]  # itself
    assert browser.value("document.scripts.length") == 0
    assert browser.value("document.title").startswith("lion report: ")
    assert browser.problems() == []  # a policy that forbids our own style sheet would be told here
    place = "document.querySelector('.headline .big').getBoundingClientRect()"
    assert 0 < browser.value(f"{place}.top") < browser.value(f"{place}.bottom") < height
    # the style sheet was applied, and is the one of this scheme
    assert browser.value("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)"
    )
    # what is read is large enough, and every plot is as wide as its column at most
    assert browser.value("Math.min(...[...document.querySelectorAll('p, td, th, dd, li')].map(one => "
                         "parseFloat(getComputedStyle(one).fontSize)))") >= 12  # fmt: skip
    assert browser.value("Math.max(...[...document.querySelectorAll('svg')].map(one => "
                         "one.getBoundingClientRect().right))") <= width  # fmt: skip


def test_everything_has_a_name_for_a_screen_reader(report: Path, browser: Page) -> None:
    """By the browser's accessibility tree: one title, sections in order, and no picture without words."""
    browser.open(report, *SCREENS["desktop"])
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in nodes if not node.get("ignored")]
    named = {role: [node for node in shown if node["role"]["value"] == role] for role in ("image", "img", "heading")}
    pictures = [*named["image"], *named["img"]]
    assert pictures
    assert all(node["name"]["value"] for node in pictures)
    titles = [node["name"]["value"] for node in named["heading"]]
    assert titles[:3] == ["SFT → DPO → online DPO", "Did it get better?", "Where it got worse"]
    (root,) = (node for node in shown if node["role"]["value"] == "RootWebArea")
    assert root["name"]["value"].startswith("lion report: ")
