"""The page in a real browser: wide, on a telephone, dark and on paper."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parsed_page import Page

from drpruning.report import write_report

pytestmark = pytest.mark.browser
MakeRun = Callable[..., Any]
PROBE = """
<script>
addEventListener("load", () => {
  const seen = (element) => element.getClientRects().length > 0;
  document.querySelectorAll("details").forEach((part) => { part.open = true; });
  const plots = [...document.querySelectorAll("svg.plot")].filter(seen);
  const sizes = plots.map((svg) =>
    12 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width);
  const clashes = [];
  for (const svg of plots) {
    const boxes = [...svg.querySelectorAll("text")].filter(seen)
      .map((text) => [text.textContent, text.getBoundingClientRect()]);
    boxes.forEach(([one, a], index) => boxes.slice(index + 1).forEach(([other, b]) => {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 1 && down > 5) clashes.push(`${svg.id}: ${one} / ${other}`);
    }));
  }
  const outside = plots.filter((svg) => svg.getBoundingClientRect().right > innerWidth + 1);
  const cut = [...document.querySelectorAll("td, th")].filter(seen)
    .filter((cell) => cell.scrollWidth > cell.clientWidth + 1).map((cell) => cell.innerText);
  const [sorted] = document.querySelectorAll("table");
  const column = sorted.rows[0].cells[1].querySelector("button");
  column?.click();
  const values = [...sorted.tBodies[0].rows].filter((row) => !row.className)
    .map((row) => parseFloat(row.cells[1].innerText.replaceAll(",", "")));
  const nats = document.getElementById("nats");
  const shown = () => [...document.querySelectorAll(".unit-nats")].filter(seen).length;
  const before = shown();
  nats.click();
  document.title = JSON.stringify({
    width: document.documentElement.scrollWidth - innerWidth,
    plots: plots.length,
    smallest: Math.min(...sizes),
    clashes,
    cut,
    outside: outside.map((svg) => svg.id),
    values,
    before,
    after: shown(),
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    page: getComputedStyle(document.body).backgroundColor,
  });
});
</script>
"""


def chromium(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium here")
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("which", "width", "scheme"),
    [
        ("page", 400, "light"),
        ("page", 400, "dark"),
        ("page", 1280, "light"),
        ("page", 1280, "dark"),
        ("page_of_several", 400, "light"),
        ("page_of_several", 1280, "dark"),
    ],
)
def test_everything_is_readable_at_any_width(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, width: int, scheme: str
) -> None:
    page: str = request.getfixturevalue(which)
    file = tmp_path / "report.html"
    # The page's own policy would keep the probe from running.
    probed = re.sub('<meta http-equiv="Content-Security-Policy".*?>', "", page)
    file.write_text(probed.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    done = chromium(tmp_path, f"--window-size={width},900", *dark, "--dump-dom", file.as_uri())
    (title,) = re.findall("<title>(.*?)</title>", done.stdout, re.DOTALL)
    found = json.loads(title.replace("&amp;", "&").replace("&gt;", ">").replace("&lt;", "<"))
    assert found["width"] <= 0, "the page is no wider than the window"
    assert found["plots"] == page.count('class="plot"')
    assert found["smallest"] >= 10
    assert found["clashes"] == []
    assert found["outside"] == []
    assert found["cut"] == []
    assert found["values"] == sorted(found["values"])
    assert (found["before"], found["after"] > 0) == (0, True)
    assert found["dark"] == (scheme == "dark")
    assert (found["page"] == "rgb(255, 255, 255)") == (scheme == "light")


def test_it_is_drawn_without_an_error(page: str, tmp_path: Path) -> None:
    file, picture = tmp_path / "report.html", tmp_path / "page.png"
    file.write_text(page, encoding="utf-8")
    chromium(tmp_path, "--window-size=1000,4000", f"--screenshot={picture}", file.as_uri())
    assert picture.stat().st_size > 50_000


def test_paper_shows_what_is_folded(fake_run: MakeRun, tmp_path: Path) -> None:
    run = fake_run()
    run.recipe()
    run.metrics("pretrain", total_steps=40, every=20)
    text = write_report([run.folder]).read_text(encoding="utf-8")
    sizes = []
    for name, content in (("all", text), ("none", text.replace("<details", "<details hidden"))):
        file, paper = tmp_path / f"{name}.html", tmp_path / f"{name}.pdf"
        file.write_text(content, encoding="utf-8")
        chromium(tmp_path, f"--print-to-pdf={paper}", file.as_uri())
        sizes.append(paper.read_bytes().count(b"/Type /Page\n"))
    assert sizes[0] > sizes[1] >= 1
    assert "details" in {tag for tag, _ in Page(text).tags}
