"""In a real JupyterLab, in a real browser: run all cells, move every control, see picture and numbers change."""

import os
from pathlib import Path

import nbformat
import pytest

from reformer_ref.notebooks import IGNORED

pytestmark = pytest.mark.browser
FOLDER = Path(__file__).parents[2] / "notebooks"
MINIMUM = ("02_", "03_", "04_", "explorer")
NOTEBOOKS = sorted(
    p
    for p in FOLDER.glob("*.ipynb")
    if p.name.startswith(tuple(os.environ.get("LAB_NOTEBOOKS", ",".join(MINIMUM)).split(",")))
)
STATE, MOST_STEPS, REDRAW = ("picture", "numbers"), 6, 1500  # milliseconds until a moved control has redrawn
SECONDS = 240_000  # milliseconds that a whole notebook may take


def open_and_run(page, lab, path):
    """The notebook's page after Run All, when the kernel has come to rest."""
    url, token = lab
    page.set_default_timeout(60_000)
    page.goto(f"{url}/lab/tree/{path.name}?token={token}&reset")
    idle = page.locator(".jp-StatusBar-Right, #jp-bottom-panel, .jp-StatusBar-Widget").get_by_text("| Idle").first
    idle.wait_for()
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.get_by_text("Run All Cells", exact=True).click()
    cells = nbformat.read(path, as_version=4).cells
    last = sum(cell.cell_type == "code" for cell in cells)
    page.locator(".jp-CodeCell .jp-InputPrompt", has_text=f"[{last}]:").first.wait_for(timeout=SECONDS)
    idle.wait_for()
    return page


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1400, "height": 1600})
    yield page
    page.close()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_and_answers_to_every_control(page, lab, path, tmp_path):
    open_and_run(page, lab, path)
    page.screenshot(path=tmp_path / f"{path.stem}.png")
    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    wanted = [
        c
        for c in nbformat.read(path, as_version=4).cells
        if IGNORED in c.metadata.get("tags", []) and "explore(" in c.source
    ]
    panels = page.locator(".widget-vbox:has(> .widget-image, > img)")
    assert panels.count() == len(wanted) > 0
    for i in range(panels.count()):
        panel = panels.nth(i)
        panel.scroll_into_view_if_needed()
        controls = panel.locator(".widget-hbox").first.locator(":scope > .jupyter-widgets")
        assert controls.count() > 0
        for j in range(controls.count()):
            before = state(panel)
            for _ in range(MOST_STEPS):  # a single step of a fine slider may leave a rounded number as it was
                move(page, controls.nth(j))
                page.wait_for_timeout(REDRAW)
                unchanged = [what for what, old, new in zip(STATE, before, state(panel), strict=True) if old == new]
                if not unchanged:
                    break
            assert not unchanged, f"after moving {controls.nth(j).inner_text()!r} these stayed the same: {unchanged}"
        if folder := os.environ.get("LAB_PICTURES"):
            panel.screenshot(path=Path(folder) / f"{path.stem}-{i}.png")


def state(panel):
    return panel.locator("img").first.get_attribute("src"), panel.locator("code").first.inner_text()


def move(page, control):
    """One step by keyboard or mouse, as a person would do it."""
    if (handle := control.locator(".noUi-handle")).count():
        value = float(handle.get_attribute("aria-valuenow"))
        up = value < float(handle.get_attribute("aria-valuemax"))
        handle.focus()
        page.keyboard.press("ArrowRight" if up else "ArrowLeft")
    elif (menu := control.locator("select")).count():
        options = menu.locator("option").all_inner_texts()
        now = menu.evaluate("m => m.selectedIndex")
        menu.select_option(index=(now + 1) % len(options))
    elif (box := control.locator("input[type=checkbox]")).count():
        box.click()
    else:
        text = control.locator("input[type=text]")
        text.fill("one two three one two three" if text.input_value().startswith("a") else "a rose is a rose")
        text.press("Enter")
