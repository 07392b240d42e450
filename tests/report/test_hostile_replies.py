"""Reports of runs whose every text is hostile, in a browser: nothing runs or asks for anything.

Replies, prompts, names of models and data come from strangers. What they hold here would set
`window.ran`, ask the network, or break the page, if any of it were read as more than text.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt

import example_run
from browser import BROWSER, NONE, Page, browser
from resect.files.tables import write_parquet
from resect.report import build_comparison, build_report

RUN = "window.ran=1;fetch('http://127.0.0.1:9/x')"
HOSTILE = {
    "script": f"<script>{RUN}</script>",
    "end of a script": f"</script></style></title><script>{RUN}</script>",
    "image": f'<img src="http://127.0.0.1:9/x" onerror="{RUN}">',
    "attribute": f'" autofocus tabindex=1 onfocus="{RUN}" x="',
    "link": f'<a href="javascript:{RUN}">x</a> [x](javascript:{RUN}) javascript:{RUN}',
    "drawing": f"</text></svg><svg onload='{RUN}'><style>*{{display:none}}</style>",
    "end of a block": "</pre></details></table></main><h1>theirs</h1><!--",
    "entities": f"&lt;script&gt;{RUN}&lt;/script&gt; &#60;script&#62;",
    "frame": f'<iframe srcdoc="<script>{RUN}</script>"></iframe><base href="http://127.0.0.1:9/">',
    "terminal": "\x1b[31mred\x1b]0;theirs\x07\x9b2J\r",
    "direction": "\u202egpj.exe\u202c \u2066x",
    "fence": f"```\n~~~\n# theirs\n<script>{RUN}</script>\n```",
    "template": "{{ 7 * 7 }}{% raw %}${7*7}",
    "long": "w" * 30_000,
}
MARK = "the words of the reply"
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# What the page itself holds; anything else of these is markup that got through.
LOOK = """(() => {
  const all = [...document.querySelectorAll("*")];
  return {
    ran: window.ran ?? null,
    title: document.title,
    scripts: document.scripts.length,
    styles: document.querySelectorAll("style").length,
    foreign: all.filter((one) =>
      ["IMG", "IFRAME", "OBJECT", "EMBED", "BASE", "FORM", "LINK"].includes(one.tagName)).length,
    handlers: all.flatMap((one) => [...one.attributes].map((a) => a.name))
      .filter((name) => name.startsWith("on")),
    links: all.map((one) => one.getAttribute("href")).filter((at) => /^\\s*javascript:/i.test(at)),
    headings: [...document.querySelectorAll("h1")].length,
    width: document.documentElement.clientWidth,
    reach: document.documentElement.scrollWidth,
  };
})()"""


def hostile() -> dict[str, Any]:
    """Return a small example run in which every kind of place takes every hostile text in turn."""
    text = itertools.cycle(HOSTILE.values())
    results = example_run.results(f"run {HOSTILE['end of a script']}")
    names = ("compactness", "transfer", "jailbreak", "stability", "guard")
    results["studies"] = [study for study in results["studies"] if study["study"] in names]
    for study in results["studies"]:
        study |= {"title": next(text), "shows": next(text), "does_not_show": next(text)}
        study["settings"] = {"harm_drop": 0.8, next(text): next(text)}
        study["claims"] *= 5
        for index, claim in enumerate(study["claims"]):
            claim = study["claims"][index] = copy.deepcopy(claim)
            claim |= {"claim": f"{index} {next(text)}", "reason": next(text), "rule": next(text)}
            for effect in (claim["effect"], *claim["controls"]):
                effect["name"] = next(text)
        for rows in study["tables"].values():
            del rows[30:]
            for row in rows:
                named = [key for key in ("arm", "source", "attack", "value", "first") if key in row]
                row |= {key: f"{row[key]} {next(text)}" for key in named}
                row[f"column {next(text)}"] = next(text)
    results["claims"] = [claim for study in results["studies"] for claim in study["claims"]]
    for key in ("models", "data", *HOSTILE):
        results["provenance"][key] = {next(text): next(text) for _ in HOSTILE}
    fields = ("rebuild", "command", "finished", "git_commit", "config", "resect")
    results["provenance"] |= {name: next(text) for name in fields} | {next(text): next(text)}
    return results


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a hostile run with replies and a configuration."""
    run = example_run.write(tmp_path_factory.mktemp("hostile") / "run", hostile())
    every = "\n".join(HOSTILE.values())
    (run / "config.yaml").write_text(f"name: {json.dumps(every)}\n# {every}\n", encoding="utf-8")
    replies = [
        {
            "role": text, "seed": 0, "cut_kind": text, "cut_target": text, "cut_category": text,
            "q": 0.5, "probe": "generation", "prompt": text, "prefix": text,
            "text": f"{MARK} {text}", "outcome": text, "rule": text,
        }
        for text in HOSTILE.values()
    ]  # fmt: skip
    write_parquet(run / "records" / "a.parquet", replies)
    return run


def test_hostile_text_stays_text_in_every_file(run: Path) -> None:
    text = build_report(run).read_text(encoding="utf-8")
    assert "Content-Security-Policy" in text
    assert MARK not in text
    shown = build_report(run, show_replies=True).read_text(encoding="utf-8")
    assert shown.count(MARK) == len(HOSTILE)
    kinds = (".html", ".md", ".json", ".csv", ".svg")
    files = [
        file for file in run.rglob("*") if file.suffix in kinds and file.name != "results.json"
    ]
    assert {file.suffix for file in files} == set(kinds)
    for file in files:
        written = file.read_bytes().decode()
        assert UNSEEN.search(written) is None, file
        if file.suffix == ".svg":
            ET.fromstring(written)
    for page in (text, shown):
        assert [word for word in (f"<script>{RUN}", "<img", "<iframe") if word in page] == []
        assert "{{ 7 * 7 }}" in page
    tokens = MarkdownIt().enable("table").parse((run / "report.md").read_text(encoding="utf-8"))
    tokens += [inner for token in tokens for inner in token.children or ()]
    assert {token.type for token in tokens} & {"html_block", "html_inline", "fence"} == {"fence"}
    links = {str(token.attrs.get("href") or token.attrs.get("src") or "") for token in tokens} - {
        ""
    }
    assert [link for link in links if not link.startswith(("tables/", "figures/"))] == []
    assert "theirs" not in {token.content for token in tokens if token.type == "inline"}


def quiet(page: Page, file: Path) -> list[str]:
    """Return what a page said or asked for beside itself."""
    requests = []
    for event in page.events:
        method, params = event.get("method", ""), event.get("params", {})
        if method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            requests += [] if url in (file.as_uri(), "about:blank") else [url]
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            requests.append(json.dumps(params)[:300])
        elif method == "Page.javascriptDialogOpening":
            requests.append("a dialog")
    return requests


def check(page: Page, file: Path) -> None:
    """Open a page narrow, open all that it hides, and look at what became of it."""
    page.events.clear()
    page.open(file, width=360)
    page.run('[...document.querySelectorAll("details")].forEach((one) => { one.open = true; })')
    seen = page.run(LOOK)
    assert seen["ran"] is None
    assert seen["title"].startswith("resect")
    assert (seen["scripts"], seen["styles"], seen["foreign"], seen["headings"]) == (1, 1, 0, 1)
    assert seen["handlers"] == seen["links"] == []
    assert seen["reach"] <= seen["width"] <= 360
    assert quiet(page, file) == []


@pytest.mark.skipif(BROWSER is None, reason=NONE)
def test_nothing_runs_and_nothing_is_asked_for(run: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as page:
        check(page, build_report(run, show_replies=True))
        check(page, build_comparison([run, run], tmp_path / "side"))


@pytest.mark.skipif(BROWSER is None, reason=NONE)
def test_replies_are_hidden_until_they_are_asked_for(run: Path, tmp_path: Path) -> None:
    seen = f"""[...document.querySelectorAll("pre")].filter((one) =>
        one.textContent.includes("{MARK}") && one.checkVisibility()).length"""
    with browser(tmp_path / "profile") as page:
        page.open(build_report(run))
        assert page.run(f'document.documentElement.outerHTML.includes("{MARK}")') is False
        page.open(build_report(run, show_replies=True))
        assert page.run(seen) == 0
        page.run('document.querySelector("#replies summary").click()')
        assert page.run(seen) == 1


@pytest.mark.skipif(BROWSER is None, reason=NONE)
def test_the_policy_stops_what_would_get_past_the_escapes(run: Path, tmp_path: Path) -> None:
    report = build_report(run)
    with browser(tmp_path / "profile") as page:
        page.open(report)
        page.run(
            """(async () => {
              window.stopped = [];
              document.addEventListener("securitypolicyviolation",
                (event) => window.stopped.push(event.effectiveDirective));
              const script = document.createElement("script");
              script.textContent = "window.ran = 1";
              document.body.append(script);
              const box = document.createElement("div");
              box.innerHTML = '<img src="http://127.0.0.1:9/x" onerror="window.ran = 2">' +
                '<p style="position:fixed">x</p><a id="l" href="javascript:window.ran=3">x</a>';
              document.body.append(box);
              document.getElementById("l").click();
              await fetch("http://127.0.0.1:9/x").catch(() => 0);
              await new Promise((done) => setTimeout(done, 200));
            })()"""
        )
        assert page.run("window.ran ?? null") is None
        stopped = set(page.run("window.stopped"))
        assert {"script-src-elem", "img-src", "connect-src", "style-src-attr"} <= stopped
