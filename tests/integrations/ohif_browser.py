"""Opens a segmentation in OHIF as a reader does: ``PYTHON ohif_browser.py JOB.json``; it prints what the page shows.

The job names the study's address, the description of the segmentation's series, the InstanceNumber of the slice to
scroll to, the browser, and two PNG files: of the whole window and of the slice.
"""

import json
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

WAIT_MS = 180_000  # drawn without a graphics card, on a machine that does other things too
WINDOW = {"width": 1280, "height": 800}
ROWS = """rows => rows.map(row => ({
  name: row.querySelector("span.text-base").innerText,
  colour: row.querySelector("span.rounded-full").style.backgroundColor,
}))"""


def open_segmentation(page: Page, job: dict) -> list[dict]:
    """Open the study, its segmentation and the list of segments; return each one's name and colour."""
    page.goto(job["url"])
    page.get_by_text(job["segmentation"]).first.dblclick(timeout=WAIT_MS)
    page.get_by_test_id("panelSegmentation-btn").click()
    rows = page.get_by_test_id("data-row")
    rows.first.wait_for(timeout=WAIT_MS)
    return rows.evaluate_all(ROWS)


def scroll_to(page: Page, job: dict) -> None:
    """Scroll until the overlay names the slice by its InstanceNumber; an error if it never does."""
    pane = page.get_by_test_id("viewport-pane")
    pane.hover()
    for _ in range(job["slices"]):
        page.wait_for_timeout(500)
        if f"I:{job['instance']}(" in "".join(pane.inner_text().split()):
            return
        page.keyboard.press("ArrowDown")
    raise RuntimeError(f"OHIF shows no slice {job['instance']}: {pane.inner_text()!r}")


def main(job: dict) -> None:
    with sync_playwright() as playwright:
        playwright.selectors.set_test_id_attribute("data-cy")
        browser = playwright.chromium.launch(executable_path=job["browser"], args=["--no-sandbox"])
        page = browser.new_page(viewport=WINDOW)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        segments = open_segmentation(page, job)
        scroll_to(page, job)
        page.keyboard.press("2")  # the lung window
        page.mouse.move(5, WINDOW["height"] - 5)
        page.wait_for_timeout(3000)
        page.screenshot(path=job["window"])
        page.get_by_test_id("viewport-pane").screenshot(path=job["slice"])
        print(json.dumps({"segments": segments, "errors": errors}))
        browser.close()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
