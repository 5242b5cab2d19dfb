"""What a person sees: TensorBoard's pages in a real browser, with what vizlog wrote."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sample_records import every_record
from tensorboard_run import server, until

from vizlog.backends.tensorboard import TensorBoard

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="needs chromium and chromedriver: apt-get install chromium chromium-driver",
)

TAGS = "filters/conv1|health/zeros_worst|weights/conv1"
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
MORE_QUIET = "--disable-component-update --disable-sync --window-size=1500,1100"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    logdir = tmp_path_factory.mktemp("browser") / "runs"
    backend = TensorBoard(logdir / "a")
    for step in (0, 50, 100):
        backend.write(step, every_record(step))
    backend.close()
    with server(logdir, fast=True) as running:
        until(lambda: running.json("text/tags").get("a"))
        yield running.address


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*QUIET.split(), *MORE_QUIET.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


# Selectors do not reach into shadow roots, of which TensorBoard's older tabs are made.
DEEP = """
const all = (root, selector) => [...root.querySelectorAll(selector),
  ...[...root.querySelectorAll("*")].filter(e => e.shadowRoot).flatMap(e => all(e.shadowRoot, selector))];
return all(document, arguments[0]).map(e => e.textContent.trim());
"""


class Page:
    """One tab of TensorBoard, and ways to wait for what should be on it."""

    def __init__(self, browser: Any, address: str, tab: str) -> None:
        self.browser = browser
        browser.get("about:blank")  # a change of the fragment alone loads nothing
        # Filtered, for only the first two groups of tags are open.
        browser.get(f"{address}?tagFilter={TAGS}#{tab}")

    def texts(self, selector: str, least: int = 1) -> list[str]:
        """The texts of all elements that match, once there are enough."""
        try:
            return until(lambda: (found := self.browser.execute_script(DEEP, selector))[least - 1 :] and found, 30)
        finally:
            if folder := os.environ.get("VIZLOG_SCREENSHOTS"):  # to look at
                name = "".join(letter if letter.isalnum() else "-" for letter in selector)
                self.browser.save_screenshot(str(Path(folder) / f"{name}.png"))

    def enter(self, selector: str) -> None:
        from selenium.webdriver.common.by import By

        self.browser.switch_to.frame(until(lambda: self.browser.find_elements(By.CSS_SELECTOR, selector))[0])


def test_time_series_shows_scalars_histograms_and_pictures(browser: Any, address: str) -> None:
    page = Page(browser, address, "timeseries")
    assert page.texts("card-view .tag", 3) == TAGS.split("|")
    assert page.texts("scalar-card line-chart")
    assert len(page.texts("histogram-card tb-histogram path", 3)) >= 3
    assert page.texts("image-card img")


def test_histograms_shows_each_step(browser: Any, address: str) -> None:
    page = Page(browser, address, "histograms")
    assert len(page.texts("g.histogram", 3)) == 3


def test_images_shows_pictures(browser: Any, address: str) -> None:
    page = Page(browser, address, "images")
    assert page.texts("tf-image-loader")
    assert page.texts("img")


def test_the_projector_opens_with_every_point_of_the_latest_step(browser: Any, address: str) -> None:
    page = Page(browser, address, "projector")
    page.enter('iframe[src*="name=projector"]')
    page.enter("iframe")
    until(lambda: page.texts(".numDataPoints") == ["60"], 30)
    assert page.texts("paper-dropdown-menu")[0].startswith("embeddings/fc latest, step 100")
