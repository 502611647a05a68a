"""Notebooks: run them without a browser, store their outputs cleanly, and write them as HTML pages.

``python -m reformer_lab walkthrough``. nbconvert writes the pages. They need nothing but themselves: pictures, style
and formulas (as MathML) are in them; there is no script, and nothing comes from the network.
"""

import copy
import html
import os
import re
import time
from pathlib import Path

from reformer_ref._arguments import clear_errors, require_bool, short_repr

from reformer_lab.training.files import open_regular

IGNORED = "nbval-ignore-output"  # the tag of cells whose output differs from run to run
CELL_SECONDS = 300
WIDGET = "application/vnd.jupyter.widget-view+json"
STYLE = """
body{max-width:62rem;margin:0 auto;padding:1rem 1.5rem 4rem;font:1rem/1.55 system-ui,sans-serif;color:#1a1a1a}
pre{background:#f6f6f6;border:1px solid #ddd;border-radius:4px;padding:.6em .8em;overflow-x:auto;line-height:1.4}
.jp-OutputArea pre{white-space:pre-wrap;background:#fff;border-left:3px solid #0072b2}
img{max-width:100%;height:auto} table{border-collapse:collapse} th,td{border:1px solid #ccc;padding:.25em .6em}
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{style}</style></head>
<body><main>
{body}
</main></body></html>
"""


def read(path):
    """Read the notebook at ``path``; TypeError or ValueError if there is none."""
    import nbformat

    if not isinstance(path, (str, Path)):
        raise TypeError(f"path must be that of a notebook, got {short_repr(path)}")
    try:
        with open_regular(path) as file:
            return nbformat.reads(file.read().decode("utf-8"), as_version=4)
    except Exception as error:  # nbformat has many kinds
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise ValueError(f"path {short_repr(str(path))} cannot be read as a notebook: {reason}") from None


def run(path, on_cell=lambda: None, timeout=CELL_SECONDS):
    """Run all cells of the notebook at ``path`` in a new kernel, in the notebook's folder, and return it.

    ``on_cell`` is called after every code cell. RuntimeError with the notebook, the cell's id and the error, if a cell
    raises or takes longer than ``timeout`` seconds.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    notebook, cells = read(path), []
    client = NotebookClient(
        notebook,
        timeout=timeout,
        resources={"metadata": {"path": str(Path(path).parent)}},
        on_cell_start=lambda cell, cell_index: cells.append(cell["id"]),
        on_cell_executed=lambda **_: on_cell(),
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError) as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
        raise RuntimeError(f"{Path(path).name}, cell {cells[-1]}: {plain[-1] if plain else error}") from None
    return notebook


@clear_errors
def clean(notebook):
    """Keep what every run gives alike: no times, no state or output of widgets, one kernel name."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    count = 0
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        outputs, cell.outputs = cell.outputs, []
        for output in outputs:
            last = cell.outputs[-1] if cell.outputs else {}
            if "execution_count" in output:
                output.execution_count = count
            if output.output_type == "stream" and last.get("name") == output.get("name"):
                last["text"] += output.text  # printed text may arrive in any number of messages
            elif WIDGET not in output.get("data", {}):
                cell.outputs.append(output)
    return notebook


def walkthrough(folder, out=None, only=(), store=False, progress=True):
    """Run the notebooks of a folder in order, write them as pages, and store their outputs.

    Args:
        folder: path of the folder of the notebooks.
        out: folder for the pages; None: no pages.
        only: beginnings of names ("03"); all notebooks if empty.
        store: whether to write the outputs back into the notebooks.
        progress: whether to draw progress bars.

    Returns:
        The paths of the notebooks.

    Raises:
        ValueError: there is no such notebook.
        RuntimeError: a cell failed; see ``run``.
    """
    import nbformat
    from tqdm import tqdm

    require_bool("store", store)
    require_bool("progress", progress)
    for name, value in (("folder", folder), ("out", out)):
        if not isinstance(value, (str, Path)) and not (name == "out" and value is None):
            raise TypeError(f"{name} must be the path of a folder, got {short_repr(value)}")
    if not isinstance(only, (tuple, list)) or not all(isinstance(beginning, str) for beginning in only):
        raise TypeError(f"only must be a list of beginnings of names, got {short_repr(only)}")
    paths = sorted(Path(folder).glob("*.ipynb")) if os.path.isdir(folder) else []
    paths = [path for path in paths if not only or path.name.startswith(tuple(only))]
    if not paths:
        beginnings = short_repr(" or ".join(only)) if only else "anything"
        raise ValueError(f"no notebook in the folder {short_repr(str(folder))} begins with {beginnings}")
    pages = []
    for path in paths:
        cells = sum(cell.cell_type == "code" for cell in read(path).cells)
        begin = time.perf_counter()
        with tqdm(total=cells, desc=path.stem, unit="cell", disable=not progress) as bar:
            notebook = run(path, on_cell=bar.update)
        if store:
            nbformat.write(clean(notebook), path)
        pages.append((path, notebook))
        print(f"{path.name}: {cells} cells, {time.perf_counter() - begin:.1f} s", flush=True)
    if out is not None:
        gallery(pages, Path(out))
    return paths


@clear_errors
def gallery(pages, out):
    """Write an HTML page for each (path, notebook), and an index with their titles and promises."""
    from pygments.formatters import HtmlFormatter

    style = STYLE + HtmlFormatter().get_style_defs(".highlight")
    title = "reformer_ref: the walkthrough"
    entries, bodies = [], {}
    for path, notebook in pages:
        heading, promise, *_ = [*filter(None, notebook.cells[0].source.splitlines()), "", ""]
        heading = html.escape(heading.lstrip("# "))
        entries.append(
            f'<li><a href="{path.stem}.html">{heading}</a><br>{html.escape(re.sub("[*_`$]", "", promise))}</li>'
        )
        bodies[path.stem] = heading, f'<p><a href="index.html">All notebooks</a></p>\n{_body(notebook)}'
    bodies["index"] = title, f"<h1>{title}</h1>\n<ul>\n{chr(10).join(entries)}\n</ul>"
    out.mkdir(parents=True, exist_ok=True)
    for name, (heading, body) in bodies.items():
        (out / f"{name}.html").write_text(PAGE.format(title=heading, style=style, body=body), encoding="utf-8")


def _body(notebook):
    """The cells as HTML, by nbconvert: formulas as MathML, and a sentence for each widget."""
    from nbconvert import HTMLExporter

    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_mathml(cell.source)
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            if WIDGET in data:
                data.clear()
                data["text/markdown"] = "*A widget: open the notebook in JupyterLab to use it.*"
            elif "text/markdown" in data:
                data["text/markdown"] = with_mathml(data["text/markdown"])
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.exclude_anchor_links = True
    return exporter.from_notebook_node(notebook)[0]


@clear_errors
def with_mathml(source):
    """Markdown with its formulas, ``$…$`` and ``$$…$$``, as MathML; code is not changed."""
    from latex2mathml.converter import convert

    def formula(match):
        if match["code"]:
            return match["code"]
        display = "block" if match["block"] else "inline"
        return convert((match["block"] or match["inline"]).strip(), display=display)

    code, block = r"(?P<code>```.*?```|`[^`\n]+`)", r"\$\$(?P<block>.+?)\$\$"
    inline = r"(?<![\\$])\$(?=\S)(?P<inline>[^$\n]+?)(?<=\S)\$(?!\d)"
    return re.sub(f"{code}|{block}|{inline}", formula, source, flags=re.DOTALL)
