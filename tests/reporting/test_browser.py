"""In a real Chromium from file://: all charts are drawn, nothing is on the console, nothing is asked for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from r1quant.reporting import html
from tests.reporting import records
from tests.reporting.test_pages import made

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
# Runs in a copy of the page only, without the policy that keeps scripts out.
ASK = """<script>
const boxes = [...document.querySelectorAll("svg")].map(each => each.getBoundingClientRect());
document.title = JSON.stringify({
  charts: boxes.filter(box => box.width > 200 && box.height > 100).length,
  wide: document.documentElement.scrollWidth - innerWidth,
  requests: performance.getEntriesByType("resource").map(each => each.name),
  ink: getComputedStyle(document.body).color,
});
</script>"""


def chromium(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    quiet = ("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
             "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}")  # fmt: skip
    command = [str(CHROMIUM), *quiet, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (500, True)])
def test_the_page_is_shown_whole(tmp_path: Path, width: int, dark: bool) -> None:
    document = made(records.everything())
    page = html.page(document)
    asking = re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", ASK + "</body>")
    path = tmp_path / "report.html"
    path.write_text(asking, "utf-8")
    scheme = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0") if dark else ()
    shown = chromium(tmp_path, f"--window-size={width},900", *scheme, "--dump-dom", path.as_uri())
    title = re.search(r"<title>(\{.*?\})</title>", shown.stdout)
    assert title is not None, shown.stderr
    found = json.loads(title[1].replace("&quot;", '"'))
    assert found["charts"] == len(document.charts)
    assert found["wide"] <= 0 and found["requests"] == []
    assert found["ink"] == ("rgb(230, 233, 237)" if dark else "rgb(27, 31, 36)")
    assert "CONSOLE" not in shown.stderr


def test_the_page_itself_says_nothing_on_the_console(tmp_path: Path) -> None:
    """With its policy in force: had it a script or a request, Chromium would say that it was refused."""
    path = tmp_path / "report.html"
    path.write_text(html.page(made(records.everything(4))), "utf-8")
    shown = chromium(tmp_path, "--dump-dom", path.as_uri())
    assert "<svg" in shown.stdout and "CONSOLE" not in shown.stderr
