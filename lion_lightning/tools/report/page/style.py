"""Style sheet of the page: light and dark, wide and narrow."""

from __future__ import annotations

LIGHT = {
    "text": "#1d2228",
    "quiet": "#57606a",
    "back": "#ffffff",
    "panel": "#f4f6f8",
    "rule": "#d5dae0",
    "good": "#17693a",
    "bad": "#a3261f",
    "s0": "#6b7280",
    "s1": "#2563a8",
    "s2": "#b85c00",
    "s3": "#1d7a4c",
    "s4": "#8a3d91",
    "s5": "#b3302a",
}
"""Colors by their use; ``s0`` to ``s5`` are the stages', apart from each other for color-blind readers, too."""

DARK = {
    "text": "#e4e7eb",
    "quiet": "#a3adb8",
    "back": "#14181d",
    "panel": "#1e242b",
    "rule": "#39424d",
    "good": "#6bd192",
    "bad": "#ff8f86",
    "s0": "#a3adb8",
    "s1": "#6aa9f0",
    "s2": "#f0a04b",
    "s3": "#5cc78e",
    "s4": "#d08bd6",
    "s5": "#ff8f86",
}
"""The same on a dark screen."""

_RULES = """
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 0 auto;
  max-width: 1080px; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .2rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .6rem; border-bottom: 1px solid var(--rule); padding-bottom: .2rem; }
h3 { font-size: .95rem; margin: 1rem 0 .3rem; }
p, ul, ol { margin: .4rem 0; } ul, ol { padding-left: 1.3rem; } li { margin: .25rem 0; }
.note { color: var(--quiet); font-size: .85rem; }
.headline { background: var(--panel); border-left: 5px solid var(--quiet); padding: .7rem .9rem; margin: .8rem 0;
  border-radius: 4px; }
.headline p { margin: .2rem 0; } .headline .big { font-size: 1.3rem; font-weight: 650; line-height: 1.3; }
.headline.better { border-color: var(--good); } .headline.worse { border-color: var(--bad); }
.better b, td.better { color: var(--good); } .worse b, td.worse { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem; margin: .6rem 0; }
.tiles div { background: var(--panel); border-radius: 4px; padding: .5rem .7rem; }
.tiles dt { color: var(--quiet); font-size: .8rem; } .tiles dd { margin: 0; font-size: 1.15rem; font-weight: 600; }
table { border-collapse: collapse; margin: .6rem 0; font-size: .92rem; width: 100%; }
th, td { border-bottom: 1px solid var(--rule); padding: .35rem .6rem .35rem 0; text-align: left; vertical-align: top; }
tbody th { min-width: 6.5rem; } thead th, td { min-width: 3rem; } td.n { white-space: nowrap; }
td.better, td.worse, td.undecided, td.unknown { min-width: 11rem; }
table.even { table-layout: fixed; } .even th:first-child { width: 8rem; }
thead th { color: var(--quiet); font-weight: 600; font-size: .82rem; } tbody th { font-weight: 600; }
.n { font-variant-numeric: tabular-nums; }
code { font: .88em ui-monospace, monospace; } code, pre { background: var(--panel); border-radius: 3px; }
code { padding: .05rem .25rem; } pre { padding: .6rem; white-space: pre-wrap; } pre code { padding: 0; }
figure { margin: 0; min-width: 0; } figcaption { font-size: .85rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); gap: 1rem 1.4rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 0 2rem;
  align-items: start; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--quiet); font-size: 11px; }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; } svg .grid { stroke: var(--rule); }
svg polyline, svg line { fill: none; stroke-width: 1.6; } svg .grid { stroke-width: 1; }
svg .d1 { stroke-dasharray: 5 3; } svg .d2 { stroke-dasharray: 1.5 2.5; } svg .d3 { stroke-dasharray: 8 3 2 3; }
svg .track { fill: var(--rule); opacity: .5; } svg .whisker { stroke: var(--text); stroke-width: 1.4; }
svg.bar { width: 160px; max-width: 100%; margin-top: .15rem; }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0 1rem; margin: 0; }
svg.key { width: 22px; height: 10px; display: inline-block; vertical-align: middle; }
.sample { border: 1px solid var(--rule); border-radius: 4px; padding: .6rem .8rem; margin: .6rem 0; }
.sample > p { font-weight: 600; margin: 0 0 .4rem; white-space: pre-wrap; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 220px), 1fr)); gap: .6rem;
  margin: 0; }
.columns div { background: var(--panel); border-radius: 4px; padding: .4rem .6rem; min-width: 0; }
.columns dt { color: var(--quiet); font-size: .8rem; }
.columns dd { margin: 0; white-space: pre-wrap; font: .88rem/1.4 ui-monospace, monospace; }
.high { border-left: 4px solid var(--good); } .low { border-left: 4px solid var(--bad); }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
@media (max-width: 620px) {
  body { padding: .7rem; } h1 { font-size: 1.25rem; } .headline .big { font-size: 1.1rem; }
  thead { display: none; } table, tbody, tr, th, td { display: block; width: 100%; }
  tr { border-bottom: 1px solid var(--rule); padding: .35rem 0; } th, td { border: 0; padding: .1rem 0; }
  td.empty, td.wide { display: none; } td.n { white-space: normal; }
  td { display: flex; gap: .6rem; } td::before { content: attr(data-label); color: var(--quiet); flex: 0 0 8rem; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(6.5rem, 1fr)); }
}
@media print { details > * { display: block; } }
"""


def _variables(colors: dict[str, str]) -> str:
    return " ".join(f"--{name}: {color};" for name, color in colors.items())


def _series() -> str:
    rules = [
        f"svg .s{number} {{ stroke: var(--s{number}); }} svg circle.s{number}, svg .f{number} "
        f"{{ fill: var(--s{number}); }}"
        for number in range(6)
    ]
    return "\n".join(rules)


STYLE = f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
{_RULES}{_series()}
"""
