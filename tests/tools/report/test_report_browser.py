"""The report in a browser: opened and photographed at the width of a desk and of a phone, nothing missing or cut."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.tools.fakes.comparisons import GAIN, comparison, real_data
from tools.report.report import report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = ((1100, 1100), (390, 360))  # CSS pixels of the photograph, and of the page that is measured
# Measured by a script in a copy of the page; the page itself has none. Scrolling boxes may hold wider tables.
PROBE = """<script>addEventListener("load", () => {
document.querySelectorAll("details").forEach(details => details.open = true);
const wide = [...document.body.querySelectorAll("*")].filter(element => !element.closest(".scroll table")
  && (element.getBoundingClientRect().right > innerWidth + 1 || element.getBoundingClientRect().left < -1));
parent.postMessage(JSON.stringify({
  missing: [...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.alt),
  images: document.images.length, wide: wide.map(element => element.outerHTML.slice(0, 200)),
  page: document.documentElement.scrollWidth, screen: innerWidth}), "*");
});</script></body>"""
# A window is 500 pixels wide at least, a frame as narrow as one likes.
FRAME = """<body><script>onmessage = event => document.body.dataset.found = event.data</script>
<iframe src="{name}" style="width: {width}px; height: 2000px; border: 0"></iframe></body>"""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on PATH")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the path of a page with every section: many arms, ratios, shares of the patients, external patients."""
    folder = tmp_path_factory.mktemp("browser")
    wanted = [*GAIN, "class_weighted", "cbmat_filter_x0.5", "cbmat_filter_oversampled", "copy_paste_oversampled"]
    directory = comparison(real_data(folder / "data"), folder / "cmp", wanted, (0, 1), (0.5, 1.0), external=True)
    report(directory)
    return directory / "report.html"


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    return tmp_path_factory.mktemp("profile")


def run(browser, profile, width, *flags):
    """Run the browser, and return what it printed and what the page's console showed."""
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
        f"--user-data-dir={profile}", f"--window-size={width},2400", "--virtual-time-budget=3000", *flags,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def measure(browser, profile, width, text, folder):
    """Return what PROBE finds in a page of some width, and what the console showed."""
    (folder / "probed.html").write_text(text.replace("</body>", PROBE))
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(name="probed.html", width=width))
    printed, console = run(browser, profile, 1200, "--dump-dom", frame.as_uri())
    return json.loads(html.unescape(re.search(r'data-found="([^"]*)"', printed)[1])), console


@pytest.mark.slow
@pytest.mark.parametrize(("width", "narrowest"), WIDTHS)
def test_the_page_opens_without_errors_and_nothing_is_missing_or_wider_than_the_screen(
    browser, profile, page, width, narrowest, tmp_path
):
    photograph = tmp_path / f"report{width}.png"
    _, console = run(browser, profile, width, f"--screenshot={photograph}", page.as_uri())
    assert not console
    image = Image.open(photograph).convert("L")
    assert image.width == width
    inked = (np.asarray(image) < 200).any(axis=1)
    assert inked[:1200].mean() > 0.2  # text is there, not a white page
    found, console = measure(browser, profile, narrowest, page.read_text(), tmp_path)
    assert not console
    assert found["images"] > 20 and found["missing"] == []
    assert found["wide"] == [] and found["page"] == found["screen"] == narrowest


@pytest.mark.slow
def test_the_probe_sees_a_lost_picture_a_wide_element_and_an_error(browser, profile, tmp_path):
    bad = '<img src="data:image/png;base64,AA" alt="lost"><div style="width: 99rem">wide</div>'
    text = f"<!DOCTYPE html><body>{bad}<script>console.error('seen')</script></body>"
    found, console = measure(browser, profile, 390, text, tmp_path)
    assert found["missing"] == ["lost"] and "wide" in found["wide"][0] and found["page"] > found["screen"] == 390
    assert any("seen" in line for line in console)
