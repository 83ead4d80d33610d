"""The report in headless Chromium: the slider moves, images are shown, nothing is fetched, no error, any width."""

import json
import shutil
import time

import pytest

from clipjax.report import read_run, write_report
from tests.report.fake_run import STEPS, fake_run

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900",
)  # fmt: skip
X = "return document.getElementById('plane-0').data[1].x"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    folder = fake_run(tmp_path_factory.mktemp("runs") / "run")
    write_report(folder / "report.html", [read_run(folder)])
    browser.get("about:blank")
    browser.get_log("performance")  # of the page that the browser began with
    browser.get((folder / "report.html").as_uri())
    return browser


def until(page, script, *arguments):
    """The first true value of a script; fails after a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if found := page.execute_script(script, *arguments):
            return found
        time.sleep(0.1)
    raise AssertionError(script)


def show(page, name):
    page.execute_script("document.getElementById(arguments[0]).scrollIntoView()", name)
    until(page, "return document.getElementById(arguments[0]).querySelector('.main-svg') !== null", name)


def emulate(page, *, width=1280, scheme="light"):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def test_slider_moves_the_points_and_the_matrix(page):
    show(page, "plane-0")
    show(page, "matrix-0")
    last = page.execute_script(X)
    matrix = "return document.getElementById('matrix-0').data[0].z[0]"
    row = page.execute_script(matrix)
    page.execute_script(
        "const s = document.querySelector('input.step'); s.value = 0; s.dispatchEvent(new Event('input'))"
    )
    until(
        page, "return JSON.stringify(document.getElementById('plane-0').data[1].x) !== arguments[0]", json.dumps(last)
    )
    until(
        page,
        "return JSON.stringify(document.getElementById('matrix-0').data[0].z[0]) !== arguments[0]",
        json.dumps(row),
    )
    labels = page.execute_script("return [...document.querySelectorAll('.step-label')].map((o) => o.textContent)")
    assert labels == [f"step {STEPS[0]} of 40"] * 2, "both sliders move together"
    lines = page.execute_script("return document.getElementById('plane-0').data[0].x")
    assert len(lines) == 3 * len(last) and lines[2] is None, "a line for each pair"


def test_play_ends_at_the_last_step(page):
    page.execute_script("document.querySelector('button.play').click()")
    until(page, f"return document.querySelector('.step-label').textContent === 'step {STEPS[-1]} of 40'")


def test_pictures_are_shown(page):
    images = until(
        page, "const all = [...document.images]; return all.every((i) => i.complete) && all.map((i) => i.naturalWidth)"
    )
    assert len(images) > 40 and all(images)
    show(page, "matrix-0")
    rows = "[...document.querySelectorAll('#matrix-0 image')].filter((i) => i.href.baseVal.includes('image/webp'))"
    shown = page.execute_script(f"return {rows}.length")
    assert shown == 16, "a thumbnail for each row of the matrix"


def test_pointing_at_a_cell_shows_its_image_its_caption_and_the_value(page):
    emulate(page)
    show(page, "matrix-0")
    area = page.find_element("css selector", "#matrix-0 .nsewdrag")
    left, top = (10 - area.size[side] // 2 for side in ("width", "height"))
    webdriver.ActionChains(page).move_to_element_with_offset(area, left, top).perform()
    card = "return document.getElementById('matrix-card-0')"
    text = until(page, f"{card}.querySelector('img') && document.getElementById('matrix-card-0').textContent")
    assert "cosine" in text and "<script>window.broken" in text and "among these captions" in text
    assert page.execute_script("return window.broken") is None


def test_colours_follow_the_reader_and_a_phone_needs_no_sideways_scroll(page):
    colours = []
    for scheme in ("light", "dark"):
        emulate(page, scheme=scheme)
        show(page, "curve-0")
        body = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        until(page, "return document.getElementById('curve-0').layout.font.color === arguments[0]",
              "#1f2733" if scheme == "light" else "#e4e8ee")  # fmt: skip
        colours.append(body)
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 24, 31)"]
    emulate(page, width=390)
    for name in ("curve-0", "plane-0", "matrix-0", "predictions", "config"):
        page.execute_script("document.getElementById(arguments[0]).scrollIntoView()", name)
        assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), name
    assert page.execute_script("return window.innerWidth") == 390


def test_nothing_is_fetched_and_nothing_fails(page):
    entries = page.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert [entry for entry in entries if not entry.startswith("data:")] == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith(("file:", "data:", "blob:")) for url in urls), urls
    assert [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
