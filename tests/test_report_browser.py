"""The report in a real browser: it asks nobody for anything, and nothing is cut off."""

from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import nbformat
import pytest
from browser import IN_A_BROWSER, launch
from playwright.sync_api import expect, sync_playwright
from report_project import write_report_project

from wavegms.report.page import write_report

pytestmark = IN_A_BROWSER

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
# A4 on its side without its margins, at 96 pixels an inch
PAPER = (1032, 700)
# What an output could hold: nothing of it may be fetched or run.
HOSTILE = """<img src="{0}/image.png"><script>document.title = "run"</script>
<link rel="stylesheet" href="{0}/style.css"><iframe src="{0}/page.html"></iframe>
<script src="{0}/script.js"></script><video src="{0}/film.mp4" autoplay></video>
<div style="background: url({0}/background.png)">shown</div>"""


@pytest.fixture(scope="module")
def project(tmp_path_factory, prepared):
    root = tmp_path_factory.mktemp("browsed")
    write_report_project(root, prepared)
    return root


@pytest.fixture(scope="module")
def report(project):
    return write_report(project / "results/report.html", project).path


@contextmanager
def opened(path, size):
    """A page with a file, what its console said, and whom it asked."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        said, asked = [], []
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_load_state("networkidle")
        yield page, said, asked
        browser.close()


@contextmanager
def listening():
    """A server of this machine; gives its address and the list of what it is asked for."""
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", heard
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_it_opens_without_an_error_or_a_request(report, size, tmp_path):
    with opened(report, size) as (page, said, asked):
        page.screenshot(path=tmp_path / "report.png", full_page=True)
        assert said == []
        # pictures are in the file itself
        assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert page.locator("img").count() > 8
        assert page.evaluate("document.documentElement.scrollWidth") == size[0]
        # dark text on white, whatever the reader's system prefers
        page.emulate_media(color_scheme="dark")
        body = page.locator("body")
        expect(body).to_have_css("color", "rgb(26, 26, 26)")
        expect(body).to_have_css("background-color", "rgb(255, 255, 255)")


def test_every_link_of_the_contents_leads_somewhere_and_cards_unfold(report):
    with opened(report, SIZES["desktop"]) as (page, said, _):
        for link in page.locator("nav a").all():
            link.click()
            assert page.locator(link.get_attribute("href")).is_visible()
        card = page.locator("details").first
        assert not card.get_by_text("Limits").is_visible()
        card.locator("summary").click()
        assert card.get_by_text("Limits").is_visible()
        assert said == []


def test_on_paper_nothing_is_cut_off(report):
    with opened(report, PAPER) as (page, _, _):
        page.emulate_media(media="print")
        ends = (
            "[...document.querySelectorAll('table, img')].map(e => e.getBoundingClientRect().right)"
        )
        assert max(page.evaluate(ends)) <= PAPER[0]


def marked(cell):
    return "outputs" in cell and "report-results" in cell.metadata.get("tags", [])


def test_what_an_output_asks_for_is_not_fetched(project, tmp_path, survived):
    path = project / "reports/08_results.ipynb"
    notebook = nbformat.read(path, as_version=4)
    cell = next(filter(marked, notebook.cells))
    with listening() as (address, heard):
        cell.outputs[0].data["text/html"] = HOSTILE.format(address)
        nbformat.write(notebook, path)
        html = write_report(tmp_path / "report.html", project).path
        with opened(html, SIZES["desktop"]) as (page, _, _):
            assert page.get_by_text("shown", exact=True).is_visible()
            assert page.title().startswith("Wave-GMS: ")
        assert address in html.read_text() and heard == []
        # it would have been heard
        plain = tmp_path / "plain.html"
        plain.write_text(HOSTILE.format(address))
        with opened(plain, SIZES["desktop"]):
            assert len(heard) >= 5
    survived("inputs", HOSTILE.count("{0}"))
