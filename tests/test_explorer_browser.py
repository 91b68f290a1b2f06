"""The explorer in a real browser: JupyterLab serves the notebook, Chromium uses it."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from time import monotonic, sleep

from browser import IN_A_BROWSER, launch
from explorer_project import write_project
from jupyter_server.serverapp import list_running_servers
from PIL import Image, ImageDraw
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks/09_explore.ipynb"
TOKEN = "explorer"

pytestmark = IN_A_BROWSER


@contextmanager
def jupyterlab(project, home):
    """Serves a project's folder on a free port of this machine; gives the notebook's address."""
    places = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    places |= {"IPYTHONDIR": str(home / "ipython"), "PYTHONPATH": str(ROOT)}
    # no question about news, which would lie over the notebook
    page = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (home / "CONFIG/labconfig").mkdir(parents=True)
    (home / "CONFIG/labconfig/page_config.json").write_text(json.dumps(page))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += ["--ServerApp.port=0", f"--IdentityProvider.token={TOKEN}"]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=project, env=os.environ | places, stdout=log, stderr=log
        )
    try:
        limit = monotonic() + 90
        while not (found := list(list_running_servers(str(home / "RUNTIME")))):
            assert server.poll() is None and monotonic() < limit, (home / "log").read_text()
            sleep(0.2)
        yield f"{found[0]['url']}lab/tree/notebooks/{NOTEBOOK.name}?token={TOKEN}"
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def browser_page(address):
    """A page of Chromium with the notebook, all of its cells run."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": 1400, "height": 1600})
        page.goto(address)
        # earlier, JupyterLab would ask which kernel to take
        expect(page.get_by_text("| Idle")).to_be_visible(timeout=90_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
        expect(page.locator(".wavegms .dice")).to_be_visible(timeout=90_000)
        expect(page.get_by_text("2 of 2 images scored")).to_be_visible()
        yield page
        browser.close()


class Watcher:
    """Sees what a person sees of the explorer."""

    def __init__(self, page):
        self.page = page
        self.dice = page.locator(".wavegms .dice")

    def picture(self, title):
        """The bytes of the picture on the screen with that caption."""
        figure = self.page.locator(".wavegms figure:visible").filter(has_text=title)
        return figure.locator("img").first.get_attribute("src")

    def slider(self, name):
        return self.page.locator(".widget-slider").filter(has_text=name).get_by_role("slider")

    def react(self, what, action, look):
        """Does something and waits until what is seen has changed."""
        before, limit = look(), monotonic() + 20
        action()
        while look() == before:
            assert monotonic() < limit, f"{what} changed nothing"
            sleep(0.01)


def test_a_person_sees_what_they_ask_for(tmp_path, prepared, pipeline):
    project, home = tmp_path / "project", tmp_path / "home"
    write_project(project, prepared, pipeline)
    for source in (NOTEBOOK, ROOT / "params.yaml"):
        (project / source.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy(source, project / source.relative_to(ROOT))
    with jupyterlab(project, home) as address, browser_page(address) as page:
        watcher = Watcher(page)
        look_at_prediction = partial(watcher.picture, "Prediction")

        # a mouse and keys move the threshold
        dice, shown = watcher.dice.inner_text(), look_at_prediction()
        handle = watcher.slider("Threshold")
        handle.focus()
        watcher.react("threshold", partial(handle.press, "Home"), look_at_prediction)
        expect(page.get_by_text("≥ 0.00: 100.0 % of area")).to_be_visible()
        expect(watcher.dice).not_to_have_text(dice)
        expect(page.get_by_text("0 px (false negative)")).to_be_visible()
        box = page.locator(".noUi-base").first.bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        expect(page.get_by_text("≥ 0.50:")).to_be_visible()
        expect(watcher.dice).to_have_text(dice)
        assert look_at_prediction() == shown

        # the table leads to the case, and its order can be changed
        table = page.get_by_label("Images", exact=True)
        names = [line.split()[0] for line in table.locator("option").all_inner_texts()]
        chosen = page.get_by_label("Image", exact=True).locator("option:checked")
        other = next(name for name in names if name != chosen.inner_text())
        row = table.locator("option").nth(names.index(other))
        watcher.react("row", partial(table.select_option, row.inner_text()), look_at_prediction)
        expect(chosen).to_have_text(other)
        table.focus()
        step = "ArrowUp" if names.index(other) else "ArrowDown"
        watcher.react("row by key", partial(page.keyboard.press, step), look_at_prediction)
        expect(watcher.dice).to_have_text(dice)
        page.get_by_label("Order").select_option("highest first")
        expect(table.locator("option").first).to_contain_text(names[-1])

        # four depths, of which the last is the prediction
        page.get_by_role("tab", name="Four depths").click()
        figures = page.locator(".wavegms figure:visible").filter(has_text="Depth")
        expect(figures).to_have_count(4)
        expect(figures.last).to_contain_text(f"Dice {dice}")
        assert watcher.picture("Depth 4") == look_at_prediction()

        # a band is taken away
        page.get_by_role("tab", name="Wavelet bands").click()
        expect(page.get_by_text("new: 0 px")).to_be_visible()
        band = watcher.slider("all that is coarser")
        band.focus()
        changed = partial(watcher.picture, "What changed")
        watcher.react("band", partial(band.press, "Home"), changed)
        expect(page.get_by_text("new: 0 px")).to_be_hidden()
        page.get_by_role("button", name="all bands whole").click()
        expect(page.get_by_text("new: 0 px")).to_be_visible()

        # an image of one's own, and one that is none
        page.get_by_role("tab", name="Your own image").click()
        mine = {"name": "mine.png", "mimeType": "image/png", "buffer": drawn_image()}
        look_at_image = partial(watcher.picture, "Image")
        watcher.react("upload", partial(choose_file, page, mine), look_at_image)
        expect(page.get_by_text("There is no true mask to compare.")).to_be_visible()
        expect(page.get_by_text("mine.png")).to_be_visible()
        choose_file(page, mine | {"name": "broken.png", "buffer": b"broken"})
        expect(page.get_by_role("alert")).to_contain_text("broken.png cannot be read as an image")
        page.get_by_role("button", name="back to the dataset").click()
        expect(watcher.dice).to_have_text(dice)
        assert look_at_prediction() == shown


def choose_file(page, file):
    """As a person does in the window that the button opens."""
    with page.expect_file_chooser() as opened:
        page.get_by_role("button", name="choose an image").click()
    opened.value.set_files(file)


def drawn_image():
    """A dark spot on a bright ground, twice as wide as high."""
    image = Image.new("L", (320, 160), 150)
    ImageDraw.Draw(image).ellipse((90, 40, 200, 130), fill=30)
    file = BytesIO()
    image.save(file, "png")
    return file.getvalue()
