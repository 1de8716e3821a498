"""The page in headless Chromium, on a server in a process of its own, as people use it."""

from __future__ import annotations

import csv
import io
import re
import shutil
from pathlib import Path

import pytest
from servers import serving
from small_students import TEXTS

from bert_kd.serve.app import PAGE, html_response

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
KEY = "a-key-of-the-tests"
LONG = TEXTS[3]
SECOND = re.compile("^Second text")


@pytest.fixture(scope="module")
def browser():
    playwright.expect.set_options(timeout=30_000)  # generous: for machines with other work
    with playwright.sync_playwright() as found:
        browser = found.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(bundle, pair_bundle):
    """A server of one bundle, and one of two with small limits."""
    with (
        serving("-b", bundle) as one,
        serving("-b", bundle, "-b", pair_bundle, "--max-texts", 7, "--max-characters", 40) as two,
    ):
        yield one, two


@pytest.fixture
def page(browser, served):
    yield from opened(browser, served[0].address)


@pytest.fixture
def pages(browser, served):
    """The page of the server of two bundles."""
    yield from opened(browser, served[1].address)


def opened(browser, address):
    """A page on which nothing goes wrong unseen and nothing comes from elsewhere."""
    context = browser.new_context(base_url=address, accept_downloads=True)
    page = context.new_page()
    wrong, asked = [], []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.on(
        "console",
        lambda message: wrong.append(message.text) if "Content Security" in message.text else None,
    )
    page.goto("/")
    yield page
    context.close()
    assert wrong == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def expect(locator):
    return playwright.expect(locator)


def labels(card):
    """What a card shows: labels and scores, best first."""
    return [tuple(item.inner_text().split("\n")[:2]) for item in card.get_by_role("listitem").all()]


def ranking(predictor, inputs):
    return [(one["label"], f"{100 * one['score']:.1f}%") for one in predictor(inputs, top_k=None)]


def settled(card):
    """Wait for the answer to what was typed last."""
    expect(card.get_by_text(re.compile(r"ms on the server, [\d.]+ ms in all"))).to_be_visible()


def file_of(name, text):
    return {"name": name, "mimeType": "text/csv", "buffer": text.encode()}


def downloaded(page):
    with page.expect_download() as coming:
        page.get_by_role("link", name="Download").click()
    return Path(coming.value.path()).read_bytes().decode(), coming.value.suggested_filename


# --- texts ---------------------------------------------------------------------------------------


def test_typing_shows_all_labels_best_first(page, single):
    expect(page.get_by_role("heading", level=1)).to_have_text("small")
    page.get_by_label("Text", exact=True).press_sequentially(LONG)
    card = page.get_by_role("region", name="small")
    settled(card)
    expect(card.get_by_role("listitem").first).to_contain_text(single(LONG)[0]["label"])
    assert labels(card) == ranking(single, LONG)
    width = card.locator(".track span").first.evaluate("bar => bar.style.width")
    assert float(width[:-1]) == pytest.approx(100 * single(LONG)[0]["score"], abs=1e-3)
    spoken = f"{single(LONG)[0]['label']}, {100 * single(LONG)[0]['score']:.0f} percent"
    expect(page.locator("[role=status]")).to_have_text(spoken)
    page.get_by_label("Text", exact=True).fill(" ")
    expect(card.get_by_role("listitem")).to_have_count(0)
    expect(page.get_by_text("the labels appear as you type")).to_be_visible()


def test_a_late_answer_to_an_older_text_is_not_shown(page, single):
    """The first answer is held back until the second one is there."""
    held = []
    page.route("**/predict", lambda route: held.append(route) if not held else route.continue_())
    field = page.get_by_label("Text", exact=True)
    field.fill("bad")
    page.wait_for_function("() => performance.now() > 0")
    while not held:
        page.wait_for_timeout(20)
    field.fill(LONG)
    card = page.get_by_role("region", name="small")
    settled(card)
    held[0].fulfill(json=[{"label": "of the older text", "score": 1.0}])
    page.wait_for_timeout(100)
    assert labels(card) == ranking(single, LONG)


def test_bundles_answer_side_by_side(pages, single, pair):
    first, second = (pages.get_by_role("region", name=name) for name in ("small", "twin"))
    pages.get_by_label("First text").fill("a film")
    settled(first)
    expect(second.get_by_text("the other one is missing")).to_be_visible()
    pages.get_by_label(SECOND).fill("very long")
    settled(second)
    assert labels(first) == ranking(single, "a film")
    assert labels(second) == ranking(pair, {"text": "a film", "text_pair": "very long"})
    assert first.bounding_box()["y"] == second.bounding_box()["y"]
    pages.get_by_role("checkbox", name="twin").uncheck()
    expect(second).to_be_hidden()
    expect(pages.get_by_label(SECOND)).to_be_hidden()


def test_a_refusal_is_shown_and_goes_with_its_cause(pages):
    pages.get_by_role("checkbox", name="twin").uncheck()
    field, card = pages.get_by_label("Text", exact=True), pages.get_by_role("region", name="small")
    field.fill("a" * 41)
    expect(card.get_by_role("alert")).to_contain_text("41 characters")
    field.fill("a film")
    settled(card)
    expect(card.get_by_role("alert")).to_be_hidden()


def test_a_server_that_is_gone_is_told(browser, bundle):
    with serving("-b", bundle) as server:
        for page in opened(browser, server.address):
            expect(page.get_by_role("region", name="small")).to_be_visible()
            server.process.terminate()
            server.process.wait(timeout=20)
            page.get_by_label("Text", exact=True).fill("a film")
            expect(page.get_by_role("alert").first).to_contain_text("does not answer")


def test_a_key_is_asked_for(browser, bundle, single):
    with serving("-b", bundle, "--api-key", KEY) as server:
        context = browser.new_context(base_url=server.address)
        page = context.new_page()
        ((name, policy),) = html_response(PAGE.read_bytes()).headers
        # Also where the server keeps the page itself behind the key.
        page.route(
            f"{server.address}/",
            lambda route: route.fulfill(
                body=PAGE.read_text(), headers={name.decode(): policy.decode()}
            ),
        )
        page.goto("/")
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        page.keyboard.type("another")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").first).to_contain_text("does not take this key")
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        expect(page.get_by_label("Text", exact=True)).to_be_focused()
        expect(field).to_be_hidden()
        page.keyboard.type("bad")
        settled(page.get_by_role("region", name="small"))
        assert labels(page.get_by_role("region", name="small")) == ranking(single, "bad")
        assert KEY not in page.content()
        context.close()


def test_a_key_opens_the_page_in_a_browser(browser, bundle, single):
    """Chromium asks for it, as for a password."""
    with serving("-b", bundle, "--api-key", KEY) as server:
        context = browser.new_context(
            base_url=server.address, http_credentials={"username": "", "password": KEY}
        )
        page = context.new_page()
        assert page.goto("/").status == 200
        page.get_by_label("Text", exact=True).fill("bad")
        settled(page.get_by_role("region", name="small"))
        assert labels(page.get_by_role("region", name="small")) == ranking(single, "bad")
        expect(page.get_by_label("API key")).to_be_hidden()
        page.get_by_text("The same as a request").click()
        expect(page.locator("#request")).to_contain_text("Authorization: Bearer KEY")
        assert KEY not in page.content()
        page.get_by_role("link", name="The API").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("bert_kd")
        context.close()


# --- files ---------------------------------------------------------------------------------------

AWKWARD = [
    ["id", "review", "label"],
    ["1", 'the film, "so" good', "x"],
    ["2", "two\nlines\r\nof it", ""],
    ["3", "", "y"],
    ["4", "zß 字 🎬", " spaces "],
    *([str(at), TEXTS[at % len(TEXTS)], "z"] for at in range(5, 30)),
]


def as_csv(rows):
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def test_a_csv_comes_back_with_labels(pages, single):
    texts = as_csv(AWKWARD).rstrip("\r\n")  # the last line break may be missing
    pages.get_by_label("Drop a CSV or TSV file").set_input_files(
        file_of("in.csv", "\ufeff" + texts)
    )
    expect(pages.get_by_label("Column of the text")).to_have_value("1")  # guessed by its name
    expect(pages.get_by_text("First row: “the film")).to_be_visible()
    pages.get_by_label("a column for each label").check()
    pages.get_by_role("button", name="Label the rows").click()
    expect(pages.get_by_role("link", name="Download in.labelled.csv")).to_be_visible()
    content, name = downloaded(pages)
    assert name == "in.labelled.csv"
    assert content.endswith("\r\n") and content.count("\r\n") == len(AWKWARD) + 1
    rows = list(csv.reader(io.StringIO(content, newline=""), strict=True))
    added = ["predicted_label", "score", *(f"score_{label}" for label in single.labels)]
    assert rows[0] == AWKWARD[0] + added
    assert [row[:3] for row in rows[1:]] == AWKWARD[1:]
    expected = single.probabilities([row[1][:40] for row in AWKWARD[1:]])
    for row, scores in zip(rows[1:], expected, strict=True):
        assert row[3] == single.labels[scores.argmax()]
        assert [float(cell) for cell in row[4:]] == pytest.approx([scores.max(), *scores], abs=2e-6)
    counts = pages.get_by_role("list", name="Rows by label").get_by_role("listitem").all()
    assert sum(int(item.inner_text().split("\n")[1]) for item in counts) == len(AWKWARD) - 1
    expect(pages.get_by_text("29 rows in")).to_contain_text("texts were cut at 40 characters")


def test_blank_lines_of_one_column_are_empty_texts(pages, single):
    """Else the rows below would shift against the file."""
    texts = ["bad", "", "a film", "", "", "good"]
    given = "\r\n".join(["text", *texts]) + "\r\n"
    pages.get_by_label("Drop a CSV or TSV file").set_input_files(file_of("in.csv", given))
    pages.get_by_role("button", name="Label the rows").click()
    content, _ = downloaded(pages)
    rows = list(csv.reader(io.StringIO(content, newline=""), strict=True))[1:]
    assert [row[0] for row in rows] == texts
    assert [row[1] for row in rows] == [answer["label"] for answer in single(texts)]
    expect(pages.get_by_text("6 rows in")).not_to_contain_text("left out")


def test_blank_lines_of_several_columns_are_counted(pages):
    given = "\nid,text\n\n1,bad\n\n\n2,\n"
    pages.get_by_label("Drop a CSV or TSV file").set_input_files(file_of("in.csv", given))
    pages.get_by_label("Column of the text").select_option("text")
    pages.get_by_role("button", name="Label the rows").click()
    content, _ = downloaded(pages)
    assert [line[:2] for line in content.splitlines()] == ["id", "1,", "2,"]
    expect(pages.get_by_text("2 rows in")).to_contain_text("3 blank lines were left out")


def test_a_tsv_of_pairs(pages, pair):
    lines = ["b\ta\tnote", 'very "long\ta film\t1', "\tbad\t2"]
    pages.get_by_label("Drop a CSV or TSV file").set_input_files(
        file_of("pairs.tsv", "\n".join(lines) + "\n")
    )
    pages.get_by_label("Model", exact=True).select_option("twin")
    pages.get_by_label("Column of the first text").select_option("a")
    pages.get_by_label("Column of the second text").select_option("b")
    pages.get_by_role("button", name="Label the rows").click()
    content, name = downloaded(pages)
    assert name == "pairs.labelled.tsv"
    rows = [line.split("\t") for line in content.splitlines()]
    assert ["\t".join(row[:3]) for row in rows] == lines
    assert rows[0][3:] == ["label", "score"]
    answers = pair([{"text": row[1], "text_pair": row[0]} for row in rows[1:]])
    assert [row[3] for row in rows[1:]] == [answer["label"] for answer in answers]


REFUSED = {
    "open.csv": ('text\n"a\nb', "Line 2: a quotation mark is opened and never closed"),
    "behind.csv": ('text\n"a"b\n', "Line 2: there is text behind"),
    "ragged.csv": ("id,text\n1,a\n2,b,c\n", "line 3: 3 columns, and the first line has 2"),
    "empty.csv": ("", "empty.csv is empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_used_is_told(page, name):
    content, message = REFUSED[name]
    page.get_by_label("Drop a CSV or TSV file").set_input_files(file_of(name, content))
    start = page.get_by_role("button", name="Label the rows")
    if name == "ragged.csv":
        start.click()
    expect(page.get_by_role("alert").filter(has_text=message)).to_be_visible()
    page.get_by_label("Drop a CSV or TSV file").set_input_files(file_of("good.csv", "text\na\n"))
    start.click()
    expect(page.get_by_role("link", name="Download")).to_be_visible()
    expect(page.get_by_role("alert").filter(has_text=message)).to_be_hidden()


def test_a_file_of_another_encoding_is_told(page):
    given = {"name": "in.csv", "mimeType": "text/csv", "buffer": "text\nschön\n".encode("latin-1")}
    page.get_by_label("Drop a CSV or TSV file").set_input_files(given)
    expect(page.get_by_role("alert").filter(has_text="is not UTF-8")).to_be_visible()


def test_a_busy_server_is_asked_again(page):
    """The first request is refused."""
    refused = []

    def answer(route):
        if refused:
            route.continue_()
            return
        refused.append(route)
        route.fulfill(status=429, json={"error": "busy"}, headers={"retry-after": "1"})

    page.get_by_label("Drop a CSV or TSV file").set_input_files(file_of("in.csv", "text\na\n"))
    page.route("**/predict", answer)
    page.get_by_role("button", name="Label the rows").click()
    expect(page.get_by_role("link", name="Download")).to_be_visible()
    assert refused


def test_a_file_can_be_dropped_and_given_up(page):
    page.route("**/predict", lambda route: None)  # never answered
    page.evaluate(
        """() => {
            const transfer = new DataTransfer();
            transfer.items.add(new File(["text\\na\\n"], "in.csv"));
            document.body.dispatchEvent(
                new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
            );
        }"""
    )
    page.get_by_role("button", name="Label the rows").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("progressbar")).to_be_hidden()
    expect(page.locator("[role=status]")).to_have_text("Cancelled.")
    expect(page.get_by_role("button", name="Label the rows")).to_be_enabled()


# --- keyboard, screen reader, sight --------------------------------------------------------------


def test_everything_by_keyboard(pages, single):
    # Listened to from the start: the browser has to be told in time not to open a window.
    pages.on("filechooser", lambda chooser: None)
    expect(pages.get_by_label("First text")).to_be_focused()
    pages.keyboard.press("Shift+Tab")
    expect(pages.get_by_role("checkbox", name="twin")).to_be_focused()
    pages.keyboard.press("Space")
    pages.keyboard.press("Tab")
    pages.keyboard.type("bad")
    card = pages.get_by_role("region", name="small")
    settled(card)
    assert labels(card) == ranking(single, "bad")
    pages.keyboard.press("Tab")
    chooser = pages.get_by_label("Drop a CSV or TSV file")
    expect(chooser).to_be_focused()
    with pages.expect_file_chooser() as coming:
        pages.keyboard.press("Space")
    coming.value.set_files(file_of("in.csv", "text\nbad\n"))
    start = pages.get_by_role("button", name="Label the rows")
    expect(start).to_be_visible()
    while not start.evaluate("button => button === document.activeElement"):
        pages.keyboard.press("Tab")
    pages.keyboard.press("Enter")
    expect(pages.get_by_role("link", name="Download")).to_be_focused()
    with pages.expect_download() as coming:
        pages.keyboard.press("Enter")
    assert (
        Path(coming.value.path())
        .read_text()
        .splitlines()[1]
        .startswith(f"bad,{single('bad')[0]['label']},")
    )


def test_every_control_has_a_name(pages):
    pages.get_by_label("Drop a CSV or TSV file").set_input_files(file_of("in.csv", "text\na\n"))
    expect(pages.get_by_role("button", name="Label the rows")).to_be_visible()
    nameless = pages.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea, button, a, progress")]
            .filter((one) => one.offsetParent && !one.labels?.length && !one.ariaLabel
                && !one.textContent.trim() && !one.hasAttribute("aria-labelledby"))
            .map((one) => one.outerHTML)"""
    )
    assert nameless == []
    levels = pages.evaluate(
        """() => [...document.querySelectorAll("h1, h2, h3")].map((one) => one.tagName)"""
    )
    assert levels[0] == "H1" and set(levels[1:]) == {"H2"}


CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgb = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
        .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
    const paper = (one) => {
        for (; one; one = one.parentElement) {
            const found = rgb(getComputedStyle(one).backgroundColor);
            if (found[3] === 255) return found;
        }
        return [255, 255, 255];
    };
    const low = [];
    for (const one of document.querySelectorAll("body *")) {
        const own = [...one.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!own || !one.offsetParent || one.closest(".spoken, script, option")) continue;
        const [a, b] = [luminance(rgb(getComputedStyle(one).color)), luminance(paper(one))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) low.push([one.textContent.trim().slice(0, 40), ratio]);
    }
    return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_can_be_read_and_fits(browser, served, scheme, width):
    """Contrast is that of WCAG AA, and nothing is wider than the window."""
    for page in opened(browser, served[1].address):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        page.get_by_label("First text").fill("a" * 60)  # too long: both are refused
        page.get_by_label(SECOND).fill("bad")
        expect(page.get_by_role("alert").first).to_be_visible()
        assert page.evaluate(CONTRAST) == []
        page.get_by_label("First text").fill("a film")
        settled(page.get_by_role("region", name="twin"))
        page.get_by_label("Drop a CSV or TSV file").set_input_files(
            file_of("a-file-with-a-long-name-that-has-no-spaces-in-it.csv", "text\na\n")
        )
        page.get_by_role("button", name="Label the rows").click()
        expect(page.get_by_role("link", name="Download")).to_be_visible()
        assert page.evaluate(CONTRAST) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
