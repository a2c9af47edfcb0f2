"""Draw docs/report.png: the page that ``python -m normtriton.perf report`` makes of perf/results, as Chromium shows it.

apt-get install chromium chromium-driver
python docs/draw_report.py [--out FILE] [--page FILE] [--at SECTION] [--width 1280] [--height 900] [--dark]
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from click.testing import CliRunner
from normtriton.perf.commands.report import command
from selenium import webdriver

if TYPE_CHECKING:
    from collections.abc import Iterator

BROWSER, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")


@contextmanager
def headless(width: int, height: int) -> Iterator[webdriver.Chrome]:
    """Debian's Chromium without a window and without a network, for pages of so many pixels."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for switch in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{switch}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1")
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        yield driver
    finally:
        driver.quit()


def main() -> None:
    """Make the page, open it, and take the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "report.png")
    parser.add_argument("--page", type=Path, help="a page that is there already")
    parser.add_argument("--at", default="verdicts", help="the id of what is to be at the top (default: verdicts)")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1080)
    parser.add_argument("--dark", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, headless(chosen.width, chosen.height) as driver:
        page = chosen.page or Path(folder, "report.html")
        if not chosen.page:
            made = CliRunner().invoke(command, ["--out", str(page)])
            if made.exit_code:
                raise SystemExit(made.output)
        driver.get(page.resolve().as_uri())
        if chosen.dark:
            driver.find_element("id", "theme").click()
        driver.execute_script("document.getElementById(arguments[0]).scrollIntoView()", chosen.at)
        driver.save_screenshot(str(chosen.out))


if __name__ == "__main__":
    main()
