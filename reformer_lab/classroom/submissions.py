"""Submissions in any state: read them, and put what the student wrote into a fresh copy of the release notebook."""

import ast
import json
import re

from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from reformer_lab.classroom.policy import MOST_CHARACTERS, broken_rules, protected_names

MOST_BYTES = 20_000_000  # of a notebook
MOST_CELLS = 500
REMARKS = "about-this-submission"  # id of the cell that tells what was done to a submission


def read(path):
    """The cells of a notebook file, without outputs; what could not be read is in ``metadata.reformer_ref.remarks``."""
    remarks, cells = [], []
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES // 1_000_000} MB (clear the outputs before you hand in)")
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored_cells = stored.get("cells") if isinstance(stored, dict) else None
        if not isinstance(stored_cells, list):
            raise ValueError("it is no notebook with cells")
        cells = [cell for cell in map(_cell, stored_cells[:MOST_CELLS]) if cell is not None]
        if len(cells) < len(stored_cells):
            n_missing = len(stored_cells) - len(cells)
            remarks.append(f"{n_missing} cells could not be read, or are beyond the {MOST_CELLS}th.")
    except (OSError, ValueError, RecursionError) as error:
        remarks.append(f"The file could not be read: {str(error)[:200]}. So every part counts as not written.")
    notebook = new_notebook(cells=cells)
    notebook.metadata["reformer_ref"] = {"remarks": remarks}
    return notebook


def _cell(stored):
    """A cell with source, id and nbgrader's metadata, of whatever is in the file; None if that is no cell."""
    if not isinstance(stored, dict) or stored.get("cell_type") not in ("code", "markdown"):
        return None
    source, metadata = stored.get("source"), stored.get("metadata")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    if not isinstance(source, str):
        return None
    marks = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    make = new_code_cell if stored["cell_type"] == "code" else new_markdown_cell
    cell = make(source.encode("utf-8", "replace").decode(), metadata={"nbgrader": marks} if _sound(marks) else {})
    if isinstance(stored.get("id"), str):
        cell["id"] = stored["id"]
    return cell


def _sound(marks):
    return isinstance(marks, dict) and isinstance(marks.get("grade_id"), str)


def rebuild(submitted, release):
    """A copy of ``release`` that holds the answers of ``submitted``, and its further cells where they stood.

    Locked cells, tests, ids and points are always those of the release. Cells are recognised by nbgrader's ids, else by
    their own, else by what they define. The first cell lists in plain words what was put right or was not run.
    """
    remarks = list(submitted.metadata.get("reformer_ref", {}).get("remarks", []))
    places, doubled = _recognise(submitted.cells, release.cells)
    for grade_id in doubled:
        remarks.append(f"Cell `{grade_id}` was there more than once; the last one counts as the answer.")
    matched = {index: place for place, index in places.items()}
    after = _further_cells(submitted.cells, release.cells, matched)
    code = [c for c in release.cells if c.cell_type == "code"]
    tests, stubs = ([c.source for c in code if _mark(c, "grade")], [c.source for c in code if _is_answer(c)])
    fixed = [c.source for c in code if not _is_answer(c)]
    theirs = [c for i, c in enumerate(submitted.cells) if i not in matched or _may_change(release.cells[matched[i]])]
    written = [c.source for c in theirs if c.cell_type == "code"]
    policy = {"protected": protected_names(tests, stubs), "others": fixed + written}
    cells = [_further(cell, policy, remarks) for cell in after.get(-1, [])]
    for place, cell in enumerate(release.cells):
        given = submitted.cells[places[place]].source if place in places else None
        if given is None and submitted.cells and _grade_id(cell):
            remarks.append(f"Cell `{_grade_id(cell)}` was missing and was put back.")
        elif given is not None and _may_change(cell):
            cell.source = _harmless(given) if cell.cell_type == "markdown" and given != cell.source else given
            if cell.cell_type == "code":
                _refuse(cell, broken_rules(given, **policy), f"`{_grade_id(cell) or cell.id}`", remarks)
        elif given is not None and given.strip() != cell.source.strip():
            remarks.append(f"Cell `{_grade_id(cell)}` was changed; the original was put back.")
        cells.append(cell)
        cells += [_further(cell, policy, remarks) for cell in after.get(place, [])]
    if remarks:
        text = "**About this submission**\n\n" + "\n".join(f"* {_harmless(remark)}" for remark in remarks)
        cells.insert(0, new_markdown_cell(text, id=REMARKS))
    release.cells = cells
    release.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return release


def _further_cells(submitted, release, matched):
    """Cells that are not in the release, by the place in it after which they come; matched: {index: place}."""
    after, last = {}, -1
    for index, cell in enumerate(submitted):
        if index in matched:
            last = max(last, matched[index])
        elif cell.cell_type == "markdown" or cell.source.strip():
            after.setdefault(last, []).append(cell)
    for place in sorted(after, reverse=True):  # an answer cell that was deleted comes before what was written instead
        moved = place
        while moved + 1 < len(release) and moved + 1 not in matched.values() and _is_answer(release[moved + 1]):
            moved += 1
        if moved != place:
            after[moved] = after.pop(place) + after.get(moved, [])
    return after


def _harmless(text):
    """A student's Markdown, which looks the same but holds no HTML: an invisible space keeps tags from being tags."""
    return re.sub(r"<(?=[A-Za-z/!?])", "<\u200b", text[:MOST_CHARACTERS])


def _mark(cell, name):
    return cell.metadata.get("nbgrader", {}).get(name)


def _is_answer(cell):
    return _mark(cell, "solution")


def _may_change(cell):
    """Whether a cell of the release is the students' to write in."""
    return _is_answer(cell) or not (_mark(cell, "locked") or _mark(cell, "grade"))


def _recognise(submitted, release):
    """{place in the release: index in the submission} and the grade ids that occur more than once."""
    places, free = {}, set(range(len(submitted)))
    known = {c.metadata.nbgrader.grade_id: place for place, c in enumerate(release) if "nbgrader" in c.metadata}
    doubled = []

    def match(key_of_submitted, key_of_release):
        by_key = {}
        for index in sorted(free):
            key = key_of_submitted(submitted[index])
            if key is not None:
                by_key.setdefault(key, []).append(index)
        for place, cell in enumerate(release):
            indices = by_key.get(key_of_release(cell), []) if place not in places else []
            if indices:
                places[place] = indices[-1]
                free.discard(indices[-1])
                yield cell, indices

    for cell, indices in match(_grade_id, _grade_id):
        if len(indices) > 1:
            doubled.append(_grade_id(cell))
            if not _is_answer(cell):  # copies of a test are of no use to anybody
                free.difference_update(indices)
    # Cells whose marks were lost or changed; those with the id of another place are copies, and stay further cells.
    lost = {i for i in free if _grade_id(submitted[i]) not in known}
    free &= lost
    list(match(lambda c: c.id, lambda c: c.id))
    list(match(lambda c: c.source.strip() or None, lambda c: None if _is_answer(c) else c.source.strip()))
    list(match(_defines, lambda c: _defines(c) if _is_answer(c) else None))
    return places, doubled


def _grade_id(cell):
    return _mark(cell, "grade_id")


def _defines(cell):
    """The functions that a code cell defines, as a key; None if there is none."""
    try:
        body = ast.parse(cell.source).body if cell.cell_type == "code" else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tuple(sorted(node.name for node in body if isinstance(node, ast.FunctionDef))) or None


def _further(cell, policy, remarks):
    """A cell that the student added, without nbgrader's marks."""
    if cell.cell_type == "markdown":
        return new_markdown_cell(_harmless(cell.source))
    cell = new_code_cell(cell.source)
    _refuse(cell, broken_rules(cell.source, **policy), "that you added", remarks)
    return cell


def _refuse(cell, reasons, which, remarks):
    """If there are reasons, replace the cell by one that raises with them and keeps the student's code as comments."""
    if reasons:
        text = "; ".join(reasons[:5])
        remarks.append(f"The cell {which} was not run: {text}.")
        kept = "".join(f"\n# {line[:200]}" for line in cell.source.splitlines()[:300])
        cell.source = f"raise RuntimeError({'This cell was not run: ' + text!r})\n\n# What you wrote:{kept}"
