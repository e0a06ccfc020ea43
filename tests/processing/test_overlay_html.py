"""The page and the moving picture: self-contained, escaped, and every mark tied to the sentences that rest on it."""

import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from modeling_gaze2report.processing.overlay_html import draw_html, draw_svg

FILM = np.tile(np.arange(200, dtype=np.uint8), (100, 1))  # 200 x 100 (width x height), drawn 768 x 384
HEART = [0.25, 0.5, 0.5, 0.75]
LUNG = [0.5, 0.25, 0.75, 0.5]


def sentence(text, boxes=(), fixations=(), status="positive", supported=None):
    return {
        "text": text,
        "confidence": 0.9,
        "findings": [{"name": "Lung Opacity", "status": status}],
        "boxes": list(boxes),
        "box_regions": ["left lung"] * len(boxes),
        "fixations": list(fixations),
        "supported": supported,
    }


def make_record(name="film.png", sentences=None, fixations=((0.25, 0.5, 0.5), (0.75, 0.25, 0.3), (0.5, 0.5, 1.0))):
    if sentences is None:
        sentences = [sentence("Big heart.", [HEART], [0, 2]), sentence("Opacity.", [LUNG], [1, 2], supported=False)]
    return {
        "image": {"name": name, "width": 200, "height": 100, "sha256": None},
        "gaze": {
            "source": "predicted" if fixations else "none",
            "fixations": [
                {"order": order, "x": x, "y": y, "duration_s": duration, "region": None}
                for order, (x, y, duration) in enumerate(fixations)
            ],
        },
        "sweep": [{"letter": "A", "name": "airway", "visited": [], "missed": ["trachea"]}],
        "sentences": sentences,
        "findings": [{"name": "Cardiomegaly", "probability": 0.9, "region": "cardiac silhouette", "box": HEART}],
        "warnings": ["Look again."],
    }


class Page(HTMLParser):
    """Elements with their attributes, and the text of the page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.inside = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data):
        if "script" not in self.inside and "style" not in self.inside:
            self.texts.append(data)

    def of_class(self, name):
        return [values for _, values in self.elements if name in (values.get("class") or "").split()]


NASTY = '<script>alert(1)</script>"\' onload="x" &amp; \x00\x1b\udcff]]>'


@pytest.mark.parametrize("draw", [draw_html, draw_svg])
def test_text_of_the_record_stays_text(draw):
    record = make_record(NASTY, [sentence(NASTY, [HEART], [0])])
    record["findings"][0]["name"] = record["warnings"][0] = record["gaze"]["fixations"][0]["region"] = NASTY
    record["sweep"][0]["missed"] = [NASTY]

    document = draw(record, FILM)

    document.encode()
    assert "<script>alert" not in document and "\x00" not in document
    page = Page(document)
    assert sum(tag == "script" for tag, _ in page.elements) == (draw is draw_html)
    assert not any(name.startswith("on") for _, values in page.elements for name in values)


@pytest.mark.parametrize("draw", [draw_html, draw_svg])
def test_nothing_is_fetched(draw):
    document = draw(make_record(), FILM)

    addresses = re.findall(r"""(?:src|href|url|xlink:href)\s*[=(]\s*["']?([^"')\s>]{1,40})""", document)
    assert addresses and all(address.startswith("data:image/") for address in addresses)
    assert set(re.findall(r"https?://[^\s\"'<)]+", document)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in document


@pytest.mark.parametrize("draw", [draw_html, draw_svg])
def test_the_notice_is_there_and_motion_can_be_refused(draw):
    document = draw(make_record(), FILM)

    assert "Research software. Not for clinical use." in document
    assert "prefers-reduced-motion" in document


def test_marks_name_the_sentences_that_rest_on_them():
    page = Page(draw_html(make_record(), FILM))

    by_onset = sorted(page.of_class("fixation"), key=lambda values: float(values["data-onset"]))
    assert [values["data-sentences"] for values in by_onset] == ["0", "1", "0 1"]
    assert [float(values["data-onset"]) for values in by_onset] == [0, 0.5, 0.8]
    # The heart's box is a finding's and a sentence's, and drawn once.
    assert [values["data-sentences"] for values in page.of_class("box")] == ["0", "1"]
    buttons = [values for tag, values in page.elements if tag == "button" and "data-sentence" in values]
    assert [values["data-sentence"] for values in buttons] == ["0", "1"]
    assert [values.get("class") for values in buttons] == [None, "unsupported"]


def test_every_mark_can_be_reached_by_keyboard():
    page = Page(draw_html(make_record(), FILM))

    marks = page.of_class("fixation") + page.of_class("box")
    assert len(marks) == 5
    assert all(values["tabindex"] == "0" and values["role"] == "button" for values in marks)


def test_what_was_missed_and_warned_of_is_said():
    text = " ".join(Page(draw_html(make_record(), FILM)).texts)

    assert "A, airway: trachea" in text and "Look again." in text and "no visual support" in text


def test_severity_stands_with_the_finding_where_the_model_grades():
    record = make_record()
    assert "Cardiomegaly: 0.90, cardiac silhouette" in " ".join(Page(draw_html(record, FILM)).texts)
    record["findings"][0]["severity"] = "moderate"
    assert "Cardiomegaly: 0.90, moderate, cardiac silhouette" in " ".join(Page(draw_html(record, FILM)).texts)


def svg_elements(document, name):
    root = ElementTree.fromstring(document.partition("?>\n")[2])
    return root, [element for element in root.iter() if element.tag == f"{{http://www.w3.org/2000/svg}}{name}"]


def test_the_picture_is_svg_with_everything_in_its_place():
    document = draw_svg(make_record(), FILM)

    _, rectangles = svg_elements(document, "rect")
    # 768 x 384: the heart from (192, 192) to (384, 288).
    assert [float(rectangles[0].get(key)) for key in ("x", "y", "width", "height")] == [192, 192, 192, 96]
    _, circles = svg_elements(document, "circle")
    # Durations 1.0, 0.5 and 0.3 s: the longest first, the glance on top; 0.3 s has a radius of 13.
    assert [(float(one.get("cx")), float(one.get("cy"))) for one in circles] == [(384, 192), (192, 192), (576, 96)]
    assert float(circles[-1].get("r")) == 13
    root, lines = svg_elements(document, "line")
    assert [tuple(float(line.get(key)) for key in ("x1", "y1", "x2", "y2")) for line in lines] == [
        (192, 192, 576, 96),
        (576, 96, 384, 192),
    ]
    assert root.get("viewBox").startswith("0 0 768 ")


def test_fixations_appear_when_they_began():
    document = draw_svg(make_record(), FILM)

    delays = re.findall(r'class="fixation timed" style="animation-delay: ([0-9.]+)s"', document)
    assert sorted(map(float, delays)) == [0, 0.5, 0.8]


@pytest.mark.parametrize("draw", [draw_html, draw_svg])
def test_a_record_without_gaze_or_sentences_is_drawn(draw):
    document = draw(make_record(sentences=[], fixations=()), FILM)

    assert 'class="fixation' not in document and 'id="play"' not in document


# -- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Debian's chromium")
    with playwright.sync_playwright() as running:
        window = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield window
        window.close()


@pytest.fixture
def page(browser, tmp_path):
    path = tmp_path / "film.html"
    path.write_text(draw_html(make_record(), FILM), encoding="utf-8")
    context = browser.new_context(reduced_motion="no-preference")
    page = context.new_page()
    faults = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(path.as_uri())
    yield page
    assert faults == []
    context.close()


def lit(page, what):
    return page.locator(f"{what}.lit").count()


@pytest.mark.debian
def test_pointing_at_a_sentence_lights_what_it_rests_on_and_the_reverse(page):
    page.hover("[data-sentence='0']")
    assert (lit(page, ".fixation"), lit(page, ".box")) == (2, 1)

    page.mouse.move(0, 0)
    assert (lit(page, ".fixation"), lit(page, ".box")) == (0, 0)

    page.locator(".fixation").nth(0).focus()  # the longest one, of both sentences
    assert lit(page, ".sentences button") == 2


@pytest.mark.debian
def test_a_choice_stays_until_escape(page):
    page.focus("[data-sentence='1']")
    page.keyboard.press("Enter")
    page.evaluate("document.activeElement.blur()")
    assert lit(page, ".fixation") == 2
    assert page.get_attribute("[data-sentence='1']", "aria-pressed") == "true"

    page.keyboard.press("Escape")
    assert lit(page, ".fixation") == 0


@pytest.mark.debian
def test_the_reading_plays_pauses_and_steps(page):
    shown = ".fixation:not(.hidden)"
    assert page.locator(shown).count() == 3

    page.keyboard.press("ArrowLeft")
    assert page.locator(shown).count() == 3  # the last one just began
    page.keyboard.press("ArrowLeft")
    assert page.locator(shown).count() == 2
    page.click("#play")
    assert page.inner_text("#play") == "Pause"
    page.locator("#play", has_text="Play").wait_for(timeout=10_000)
    assert page.locator(shown).count() == 3


@pytest.mark.debian
def test_layers_can_be_hidden(page):
    page.uncheck("[data-layer='.heat']")

    assert not page.locator("svg .heat").is_visible() and page.locator(".box").first.is_visible()
