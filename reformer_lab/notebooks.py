"""Notebooks: run them all without a browser, store their outputs cleanly, and write them as a
gallery of HTML pages.

``python -m reformer_lab walkthrough``. The pages carry everything in themselves: pictures, style,
formulas as MathML; no script, nothing from the network.
"""

import html
import os
import re
import time
from pathlib import Path

from reformer_ref._arguments import clear_errors, require_bool, shown

from reformer_lab.training.files import open_regular

IGNORED = "nbval-ignore-output"  # the tag of cells whose output differs from run to run
CELL_SECONDS = 300
STYLE = """
body{max-width:62rem;margin:0 auto;padding:1rem 1.5rem 4rem;
font:1rem/1.55 system-ui,sans-serif;color:#1a1a1a;background:#fff}
h1,h2,h3{line-height:1.25;margin:1.6em 0 .5em} a{color:#005a9c} img{max-width:100%;height:auto}
pre{background:#f6f6f6;border:1px solid #ddd;border-radius:4px;padding:.6em .8em;overflow-x:auto;
font-size:.85rem;line-height:1.4}
.out pre{white-space:pre-wrap;background:#fff;border-color:#eee;border-left:3px solid #0072b2} code{font-size:.9em}
table{border-collapse:collapse;margin:1em 0} th,td{border:1px solid #ccc;padding:.25em .6em;text-align:left}
.anchor-link{display:none} nav{margin:.5rem 0 1.5rem} math[display=block]{margin:1em 0}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:1.2rem;padding:0;list-style:none}
.cards li{border:1px solid #ccc;border-radius:6px;padding:1rem} .cards img{height:9rem;width:100%;object-fit:contain}
details{margin:.6em 0} summary{cursor:pointer}
"""


def read(path):
    """The notebook at ``path``; TypeError or ValueError if it is none."""
    import nbformat

    if not isinstance(path, (str, Path)):
        raise TypeError(f"path must be that of a notebook, got {shown(path)}")
    try:
        with open_regular(path) as file:
            return nbformat.reads(file.read().decode("utf-8"), as_version=4)
    except Exception as error:  # nbformat has many kinds
        what = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise ValueError(f"path {shown(str(path))} cannot be read as a notebook: {what}") from None


def run(path, on_cell=lambda: None, timeout=CELL_SECONDS):
    """The notebook at ``path`` after all its cells ran in a new kernel, in its own folder.

    on_cell: called after every code cell. Errors: RuntimeError with the notebook, the cell's id and
    the error, if one raises or takes longer than ``timeout`` seconds.
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
    """Keep what a reader needs and every run gives alike: no times, no state or output of widgets,
    one kernel name.
    """
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook.metadata["language_info"] = {"name": "python"}
    count = 0
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        shown = [o for o in cell.outputs if "application/vnd.jupyter.widget-view+json" not in o.get("data", {})]
        cell.outputs = []
        for output in shown:  # what is printed may arrive in any number of pieces
            last = cell.outputs[-1] if cell.outputs else {}
            if output.output_type == "stream" and last.get("name") == output.get("name"):
                last["text"] += output.text
            else:
                cell.outputs.append(output)
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
    return notebook


def walkthrough(folder, out=None, only=(), store=False, progress=True):
    """Run the notebooks of a folder in order; write the gallery to ``out`` and, with ``store``, the
    outputs back.

    only: beginnings of names ("03"); all if empty. Returns the paths of the notebooks. Errors:
    ValueError if there is no such notebook; RuntimeError as in ``run``.
    """
    import nbformat
    from tqdm import tqdm

    require_bool("store", store), require_bool("progress", progress)
    for name, value in (("folder", folder), ("out", out)):
        if not isinstance(value, (str, Path)) and not (name == "out" and value is None):
            raise TypeError(f"{name} must be the path of a folder, got {shown(value)}")
    if not isinstance(only, (tuple, list)) or not all(isinstance(o, str) for o in only):
        raise TypeError(f"only must be a list of beginnings of names, got {shown(only)}")
    paths = sorted(Path(folder).glob("*.ipynb")) if os.path.isdir(folder) else []
    chosen = [p for p in paths if not only or any(p.name.startswith(o) for o in only)]
    if not chosen:
        begins = shown(" or ".join(only)) if only else "anything"
        raise ValueError(f"no notebook in the folder {shown(str(folder))} begins with {begins}")
    pages = []
    for path in chosen:
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
    return chosen


@clear_errors
def gallery(pages, out):
    """One HTML page for each (path, notebook), and an index with their promises and first pictures."""
    out.mkdir(parents=True, exist_ok=True)
    names, cards = [path.stem for path, _ in pages], []
    for i, (path, notebook) in enumerate(pages):
        around = [(names[j], word) for j, word in ((i - 1, "← "), (i + 1, "→ ")) if 0 <= j < len(names)]
        links = " · ".join(
            ['<a href="index.html">All notebooks</a>', *(f'<a href="{n}.html">{w}{n}</a>' for n, w in around)]
        )
        title, promise, picture = _summary(notebook)
        page = f'<nav aria-label="notebooks">{links}</nav>\n<main>\n{_body(notebook)}\n</main>'
        (out / f"{path.stem}.html").write_text(_page(title, page), encoding="utf-8")
        image = f'<img alt="" src="data:image/png;base64,{picture}">' if picture else ""
        cards.append(
            f'<li>{image}<h2><a href="{path.stem}.html">{html.escape(title)}</a></h2><p>{html.escape(promise)}</p></li>'
        )
    body = f'<h1>reformer_ref: the walkthrough</h1>\n<ul class="cards">{"".join(cards)}</ul>'
    (out / "index.html").write_text(_page("reformer_ref: the walkthrough", body), encoding="utf-8")


def _page(title, body):
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def _summary(notebook):
    """Title, promise and first picture (base64, or None) of a notebook."""
    lines = [line.strip() for line in notebook.cells[0].source.splitlines() if line.strip()]
    title, promise = (lines[0].lstrip("# "), re.sub(r"[*_`$]", "", lines[1]) if len(lines) > 1 else "")
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return (title, promise, next((o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})), None))


def _body(notebook):
    """The cells as HTML, one after the other."""
    from nbconvert.filters import ansi2html
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(markdown2html_mistune(with_mathml(cell.source)))
            continue
        parts.append(f"<pre><code>{html.escape(cell.source)}</code></pre>")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                alt = html.escape(output.metadata.get("alt", ""), quote=True)
                shown = f'<img alt="{alt}" src="data:image/png;base64,{data["image/png"].strip()}">'
            elif "text/html" in data:
                shown = data["text/html"]
            elif "text/markdown" in data:
                shown = markdown2html_mistune(with_mathml(data["text/markdown"]))
            elif "application/vnd.jupyter.widget-view+json" in data:
                shown = "<p><em>Here stands a widget; open the notebook in JupyterLab to move it.</em></p>"
            else:
                shown = f"<pre>{ansi2html(output.get('text', data.get('text/plain', '')))}</pre>"
            parts.append(f'<div class="out">{shown}</div>')
    return "\n".join(parts)


@clear_errors
def with_mathml(source):
    """Markdown with its formulas, ``$…$`` and ``$$…$$``, as MathML; code stays as it is."""
    from latex2mathml.converter import convert

    def formula(match):
        if match["code"]:
            return match["code"]
        display = "block" if match["block"] else "inline"
        return convert((match["block"] or match["inline"]).strip(), display=display)

    code, block = r"(?P<code>```.*?```|`[^`\n]+`)", r"\$\$(?P<block>.+?)\$\$"
    inline = r"(?<![\\$])\$(?=\S)(?P<inline>[^$\n]+?)(?<=\S)\$(?!\d)"
    return re.sub(f"{code}|{block}|{inline}", formula, source, flags=re.DOTALL)
