"""The page in a headless browser: what a visitor sees and does, by pointer, by keyboard and on a phone.

Screenshots go to the folder `GAZE2REPORT_SCREENSHOTS`, else to pytest's temporary folder.
"""

import os
import shutil
import threading
import time
from pathlib import Path

import httpx
import pytest

from .running_space import PHANTOM

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.debian,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]
WAIT_MS = 90_000
# Gradio's own page: its event stream is cut when a page closes.
ALLOWED = ("/gradio_api/queue/data", "/gradio_api/heartbeat", "Method not implemented")


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    folder = Path(os.environ.get("GAZE2REPORT_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, space):
    """Opens the Space; when the test is over, no page may have complained or asked another server for anything."""
    complaints, contexts = [], []

    def note(text):
        if not any(allowed in text for allowed in ALLOWED):
            complaints.append(text)

    def start(**options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 1000}} | options))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: note(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: note(str(error)))
        page.on("requestfailed", lambda request: note(request.url))
        page.on("request", lambda request: None if is_local(request.url) else note(f"asked {request.url}"))
        page.goto(space.url)
        page.wait_for_selector("#first-view .film-view")
        return page

    yield start
    for context in contexts:
        context.close()
    assert not complaints


def is_local(address: str) -> bool:
    return address.startswith(("http://127.0.0.1:", "data:", "blob:"))


def upload(page, film):
    page.set_input_files("#film input[type=file]", str(film))
    page.wait_for_selector("#first-view .film-view[data-state=film]")


def wait_for_report(page):
    page.wait_for_function("document.querySelector('#first-view .status').textContent.startsWith('Read in')")


def read(page, film=PHANTOM):
    upload(page, film)
    page.click("#write")
    wait_for_report(page)


# Notes how the list of sentences grows, from before the button is pressed.
WATCH = """() => {
    window.steps = [];
    const list = document.querySelector('#first-view .sentences');
    const note = () => {
        const count = list.querySelectorAll('.sentence').length;
        if (window.steps[window.steps.length - 1] !== count) window.steps.push(count);
    };
    new MutationObserver(note).observe(list, { childList: true, subtree: true });
}"""


def sentence_with(page, marker):
    """The first sentence of the report whose notes hold the words."""
    return page.locator("#first-view .sentence").filter(has_text=marker).first


@pytest.mark.shared
def test_a_real_film_is_read_in_front_of_the_visitors_eyes(open_page, shared_data, screenshots):
    page = open_page()
    film = sorted((shared_data / "cxr" / "images").glob("hannover_*.jpg"))[0]
    upload(page, film)
    page.evaluate(WATCH)

    page.click("#write")
    wait_for_report(page)

    steps = page.evaluate("window.steps")
    assert len([count for count in steps if count > 0]) >= 2, steps
    assert page.locator("#first-view .fixation").count() >= 3
    assert page.locator("#first-view .finding").count() == 14
    assert "Research software. Not for clinical use." in page.inner_text("body")
    page.screenshot(path=screenshots / "real-film.png", full_page=True)


@pytest.mark.shared
def test_a_dicom_film_is_shown_and_read(open_page, shared_data, screenshots):
    page = open_page()

    read(page, shared_data / "cxr" / "dicom" / "siim_nih_pa_monochrome2_jpegbaseline.dcm")

    assert page.locator("#first-view .sentence").count() >= 1
    assert page.evaluate("document.querySelector('#first-view img').naturalWidth") > 100
    page.screenshot(path=screenshots / "dicom.png", full_page=True)


def test_sentences_boxes_and_fixations_light_each_other(open_page, screenshots):
    page = open_page()
    read(page)
    view = page.locator("#first-view")
    sentence = sentence_with(page, "box")

    sentence.click()
    lit = view.locator(".box.lit").count(), view.locator(".fixation.lit").count()
    promised = sentence.locator("small").inner_text()
    assert lit[0] >= 1 and f"{lit[0]} box" in promised and (not lit[1] or f"{lit[1]} fixation" in promised)
    page.screenshot(path=screenshots / "sentence.png", full_page=True)
    sentence.click()
    page.mouse.move(0, 0)
    view.locator(".film-title").click()

    box = view.locator(".box").first
    box.dispatch_event("click")
    assert "lit" in sentence.get_attribute("class")
    box.dispatch_event("click")

    looked = view.locator(".fixation")
    before = view.locator(".sentence.lit").count()
    found = 0
    for index in range(looked.count()):
        looked.nth(index).dispatch_event("click")
        found = max(found, view.locator(".sentence.lit").count())
        looked.nth(index).dispatch_event("click")
    assert before == 0 and found >= 1


def test_the_reading_plays_and_stops(open_page):
    page = open_page()
    read(page)
    view = page.locator("#first-view")
    if view.locator(".play").inner_text() == "Pause":
        view.locator(".play").click()
    view.locator(".time").fill("0")
    assert view.locator(".fixation.later").count() == view.locator(".fixation").count() - 1

    view.locator(".play").click()
    page.wait_for_function("document.querySelectorAll('#first-view .fixation:not(.later)').length >= 3")
    view.locator(".play").click()

    assert view.locator(".play").inner_text() == "Play"
    assert 0 < float(view.locator(".time").input_value()) < float(view.locator(".time").get_attribute("max"))
    view.get_by_label("Heat map").check()
    assert view.locator("canvas.heat").is_visible()


def test_looking_with_the_pointer_changes_the_evidence(open_page, screenshots):
    page = open_page()
    read(page)
    page.click("#first-view .look")
    stage = page.locator("#first-view .stage").bounding_box()
    for x, y in ((0.25, 0.3), (0.7, 0.65), (0.3, 0.75)):
        page.mouse.click(stage["x"] + x * stage["width"], stage["y"] + y * stage["height"])
    assert len(page.input_value("#gaze-points textarea").splitlines()) == 3
    assert page.locator("#first-view .own").count() == 3

    page.click("#compare")
    page.wait_for_selector("#second-view .film-view[data-state=film] .changed h4")

    assert page.locator("#second-view .fixation").count() == 3
    assert page.locator("#first-view .fixation").count() > 3
    first = page.locator("#second-view .fixation").first.get_attribute("aria-label")
    assert first.startswith("Fixation 1") and "0.30 seconds" in first
    left, right = (page.locator(f"#{name}-view").bounding_box() for name in ("first", "second"))
    assert left["x"] + left["width"] <= right["x"]  # side by side
    page.screenshot(path=screenshots / "own-gaze.png", full_page=True)


def test_questions_phrases_and_readings(open_page):
    page = open_page()
    upload(page, PHANTOM)
    page.get_by_role("tab", name="Ask").click()
    page.fill("#question textarea, #question input", "Is the <b>heart</b> large?")
    page.click("#ask")
    page.wait_for_function("document.querySelector('#answer textarea, #answer input').value.length > 0")
    page.get_by_role("tab", name="Find").click()
    page.fill("#phrase textarea, #phrase input", "<img src=x onerror=alert(1)>")
    page.click("#find")
    page.wait_for_function("document.querySelector('#found textarea, #found input').value.length > 0")
    page.get_by_role("tab", name="Readings").click()
    page.click("#sample")
    page.wait_for_selector("#first-view .readings button")

    assert page.locator("#first-view .readings button").count() == 3
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Report (text)", "phantom.report.txt"),
        ("Evidence (JSON)", "phantom.evidence.json"),
        ("Overlay (PNG)", "phantom.overlay.png"),
        ("Page to share (HTML)", "phantom.report.html"),
        ("DICOM SR", "phantom.report.dcm"),
    ],
)
def test_everything_can_be_taken_away(report_page, label, name):
    with report_page.expect_download() as download:
        report_page.get_by_role("button", name=label).click()

    assert download.value.suggested_filename == name
    assert Path(download.value.path()).stat().st_size > 100


@pytest.fixture(scope="module")
def report_page(browser, space):
    page = browser.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(space.url)
    read(page)
    page.get_by_role("tab", name="Download").click()
    yield page
    page.close()


def test_it_fits_a_phone(open_page, screenshots):
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    upload(page, PHANTOM)
    page.tap("#write")  # a phone has no pointer that could rest on something
    wait_for_report(page)

    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    stage = page.locator("#first-view .stage").bounding_box()
    assert stage["width"] >= 300
    sentence = sentence_with(page, "box")
    sentence.tap()
    page.wait_for_selector("#first-view .box.lit")
    assert all(row.bounding_box()["height"] >= 24 for row in page.locator("#first-view .sentence").all())
    page.screenshot(path=screenshots / "phone.png", full_page=True)


def test_it_works_with_the_keyboard_alone(open_page):
    page = open_page()
    page.wait_for_selector("button.gallery-item, .gallery-item, [data-testid=dataset] button, table button")

    def reach(selector, most=80):
        """Press the tabulator until the element has the focus."""
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate(
                "selector => document.activeElement && document.activeElement.matches(selector)", selector
            ):
                return
        raise AssertionError(f"{selector} cannot be reached by the keyboard")

    reach(".gallery-item, [data-testid=dataset] button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#first-view .film-view[data-state=film]")
    page.evaluate("document.activeElement.blur()")
    reach("#write")
    page.keyboard.press("Enter")
    wait_for_report(page)
    reach("#first-view .sentence")
    page.keyboard.press("Enter")
    assert page.locator("#first-view .sentence[aria-pressed=true]").count() == 1
    page.evaluate("document.activeElement.blur()")
    reach("#first-view .look")
    page.keyboard.press("Enter")
    for key in ("ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    assert page.input_value("#gaze-points textarea") == "0.52, 0.52, 0.3"


def luminance(colour):
    levels = [int(one) / 255 for one in colour.strip("rgba() ").split(",")[:3]]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in levels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_in_the_light_and_in_the_dark(open_page, space, screenshots, theme):
    page = open_page(color_scheme=theme)
    page.goto(f"{space.url}?__theme={theme}")
    page.wait_for_selector("#first-view .film-view")
    read(page)

    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for selector in (".sentence", ".sentence small", ".finding", ".status"):
        colour = page.evaluate(
            "selector => getComputedStyle(document.querySelector('#first-view ' + selector)).color", selector
        )
        first, second = sorted((luminance(background), luminance(colour)))
        assert (second + 0.05) / (first + 0.05) >= 4.5, (selector, colour, background)  # WCAG 2.2, 1.4.3
    page.screenshot(path=screenshots / f"{theme}.png", full_page=True)


def test_who_waits_sees_the_place_in_the_queue(open_page, space):
    from modeling_gaze2report.hub_space.load_study import crowd

    page = open_page()
    upload(page, PHANTOM)
    others = threading.Thread(target=crowd, args=(space.url, 12, 12, 0, PHANTOM))
    others.start()
    waiting = space.url + "/gradio_api/queue/status"
    deadline = time.monotonic() + 60
    while httpx.get(waiting, timeout=60).json()["queue_size"] < 4 and time.monotonic() < deadline:
        time.sleep(0.05)

    page.click("#write")

    page.wait_for_function("/queue: \\d+\\/\\d+/.test(document.body.innerText)")
    others.join()
    wait_for_report(page)


def test_a_visitors_files_go_when_the_page_is_closed(browser, space, tmp_path):
    film = tmp_path / "going.png"
    film.write_bytes(PHANTOM.read_bytes() + b"another file")
    page = browser.new_page()
    page.goto(space.url)
    page.wait_for_selector("#first-view .film-view")
    upload(page, film)
    assert list(space.uploads.rglob("going.png"))

    page.close()

    deadline = time.monotonic() + 30
    while list(space.uploads.rglob("going.png")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not list(space.uploads.rglob("going.png"))
