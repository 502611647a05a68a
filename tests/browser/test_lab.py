"""In a real JupyterLab, in a real browser: run all cells, move every control, see picture and
numbers change.
"""

import os
from pathlib import Path

import nbformat
import pytest
from reformer_lab.notebooks import IGNORED

pytestmark = pytest.mark.browser
FOLDER = Path(__file__).parents[2] / "notebooks"
MINIMUM = ("02_", "03_", "04_", "explorer")
NOTEBOOKS = sorted(
    p
    for p in FOLDER.glob("*.ipynb")
    if p.name.startswith(tuple(os.environ.get("LAB_NOTEBOOKS", ",".join(MINIMUM)).split(",")))
)
MOST_STEPS, REDRAW = 6, 5000  # milliseconds until a moved control has redrawn, on a busy machine
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
            there_and_back(page, panel, controls.nth(j))
        if folder := os.environ.get("LAB_PICTURES"):
            panel.screenshot(path=Path(folder) / f"{path.stem}-{i}.png")


def there_and_back(page, panel, control):
    """Move a control until picture and numbers have changed, and back again."""
    before, undo = state(panel), []
    for _ in range(MOST_STEPS):  # a single step of a fine slider may leave a rounded number as it was
        undo.append(move(page, control))
        if until(page, lambda: all(old != new for old, new in zip(before, state(panel), strict=True))):
            break
    else:
        pytest.fail(f"moving {control.inner_text()!r} does not change both picture and numbers")
    for back in reversed(undo):
        back()
    same = until(page, lambda: state(panel)[1] == before[1])
    assert same, f"moved back, {control.inner_text()!r} shows other numbers than before"


def until(page, condition, milliseconds=REDRAW):
    """Whether ``condition()`` came to hold within some time."""
    for _ in range(milliseconds // 100):
        if condition():
            return True
        page.wait_for_timeout(100)
    return False


def state(panel):
    return panel.locator("img").first.get_attribute("src"), panel.locator("code").first.inner_text()


def move(page, control):
    """One step by keyboard or mouse, as a person would do it; returns what takes it back."""
    if (handle := control.locator(".noUi-handle")).count():
        up = float(handle.get_attribute("aria-valuenow")) < float(handle.get_attribute("aria-valuemax"))
        handle.press("ArrowRight" if up else "ArrowLeft")
        return lambda: handle.press("ArrowLeft" if up else "ArrowRight")
    if (menu := control.locator("select")).count():
        now = menu.evaluate("m => m.selectedIndex")
        menu.select_option(index=(now + 1) % menu.locator("option").count())
        return lambda: menu.select_option(index=now)
    if (box := control.locator("input[type=checkbox]")).count():
        box.click()
        return box.click
    line = control.locator("input[type=text]")
    before = line.input_value()

    def write(text):
        line.fill(text)
        line.press("Enter")

    write(f"{before.split()[0]} is a rose is a rose")
    return lambda: write(before)
