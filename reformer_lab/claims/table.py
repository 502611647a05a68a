"""The claims table: what the paper says, what came out here, how, by which command, in how many minutes.

Every figure of ours is read from a record; nothing here is typed in by hand.
"""

import html
import os
import shlex
from pathlib import Path

from reformer_ref._arguments import UNCLEAR, require_choice, require_int

from reformer_lab import records
from reformer_lab.claims import NAMES, claim
from reformer_lab.claims.experiment import is_time, read_config, read_object
from reformer_lab.plots.drawing import Html
from reformer_lab.training.files import as_path

DATA = records.FOLDER
HEAD = ("claim", "paper", "ours", "how", "command", "minutes")
KEYS = {
    "claim": str, "date": str, "minutes": is_time, "complete": bool, "missing": list, "config": dict, "runs": list,
}  # fmt: skip
HOW = ("measured", "counted", "predicted")


def row(claim, paper, ours, how="measured"):
    """A line of the table, without the command and the minutes of its claim."""
    return {"claim": claim, "paper": paper, "ours": ours, "how": how}


def stored(name, folder=DATA):
    """The record ``folder/NAME.json`` of a claim, or None if it has not been run. ValueError if it is damaged."""
    path = as_path("folder", folder) / f"{require_choice('name', name, NAMES)}.json"
    return read_object(path, KEYS, {"claim": name}) if os.path.lexists(path) else None


def table_rows(folder=DATA, names=NAMES):
    """All rows of the table: dicts with the keys of HEAD. A claim without a record has one, which says so."""
    if not isinstance(names, (list, tuple)):
        raise TypeError(f"names must be a list of claims, got {type(names).__name__}")
    rows = []
    for name in names:
        config = read_config(name)
        record = stored(name, folder)
        command = f"reformer-ref reproduce {name}"
        if record is None:
            entry = row(config["about"], "", "not run yet", config["how"])
            rows.append({**entry, "command": command, "minutes": f"{config['minutes']} (predicted)"})
            continue
        given = given_name(record)
        command += "" if given is None else f" --data {shlex.quote(given)}"
        minutes = f"{record['minutes']:.3g}" + ("" if record["complete"] else " so far")
        try:
            ours = claim(name).rows(record)
        except UNCLEAR as error:
            path = Path(folder) / f"{name}.json"
            raise ValueError(f"{path} is damaged, or of another version: {type(error).__name__}: {error}") from error
        for entry in ours or [row(config["about"], "", "nothing to compare yet", config["how"])]:
            rows.append({**entry, "command": command, "minutes": minutes})
    return rows


def claims_table(folder=DATA, names=NAMES):
    """The table as HTML, for a notebook."""
    lines = ["<table><thead><tr>" + "".join(f'<th scope="col">{name}</th>' for name in HEAD) + "</tr></thead><tbody>"]
    for row in table_rows(folder, names):
        cells = (f"<code>{html.escape(row[k])}</code>" if k == "command" else html.escape(row[k]) for k in HEAD)
        lines.append("<tr>" + "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells) + "</tr>")
    return _Table("\n".join([*lines, "</tbody></table>"]))


class _Table(Html):
    def __repr__(self):  # a notebook stores this beside the table
        return "<the claims table>"


def claims_markdown(folder=DATA, names=NAMES):
    """The table as Markdown, for ``docs/claims.md``, under a heading for every claim."""
    lines = [
        "# The paper's claims, run again", "",
        "Written by `reformer-ref reproduce --table` from the records in `reformer_lab/records`; not edited by hand.",
        "*Measured*: a clock, an accuracy, the memory of a process. *Counted*: exact bytes of tensors, or operations.",
        "*Predicted*: computed from counts, and for days from a measured pace, for what was not run. Several seeds:",
        "mean (least – most); else one seed, or nothing random. Minutes: of all sub-runs together; `--jobs 2` runs two",
        "side by side.",
    ]  # fmt: skip
    for name in names:
        rows = table_rows(folder, (name,))
        about = f"`{rows[0]['command']}` · minutes: {rows[0]['minutes']}"
        lines += ["", f"## {read_config(name)['about']}", "", about, "", "| claim | paper | ours | how |"]
        lines += ["|---|---|---|---|"]
        lines += ["| " + " | ".join(row[key].replace("|", "\\|") for key in HEAD[:4]) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def show(name, number=0, folder=DATA):
    """A picture of a claim, drawn from its record; without a record, a sentence that says how to make one.

    number: which of its pictures. Meant as the last value of a notebook's cell.
    """
    from reformer_lab.claims.plots import pictures

    record = stored(name, folder)
    if record is None:
        config = read_config(name)
        text = f"Not recorded here yet: {config['about']}. About {config['minutes']} minutes:"
        return Html(f"<p>{html.escape(text)} <code>reformer-ref reproduce {name}</code></p>")
    drawings = list(pictures(record).values())
    picture = drawings[require_int("number", number, 0, len(drawings) - 1)]()
    picture.colours, picture.notebook_dpi = 64, 85  # a notebook of a dozen pictures must stay small
    return picture


def as_text(rows):
    """Rows as lines of text: claim, the paper's figure, ours."""
    width = max((len(row["claim"]) for row in rows), default=0)
    lines = (f"{row['claim']:<{width}}  paper: {row['paper']}  ours: {row['ours']} ({row['how']})" for row in rows)
    return "\n".join(lines)


def mean_and_range(values, form="{:.1f}"):
    """Mean and, of several values, the smallest and largest: "97.3 (96.1 – 98.0)"."""
    values = [float(value) for value in values]
    if not values:
        raise ValueError("values must hold at least one number, got none")
    mean = form.format(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} – {form.format(max(values))})"


def given_name(record):
    """The name of the file or folder given with ``--data``, or None."""
    given = record["runs"][0]["settings"].get("data_given") if record["runs"] else None
    return None if given is None else given["name"]


def data_name(record):
    """The name of the data: of the file or folder given with ``--data``, else as the configuration has it."""
    return given_name(record) or record["config"]["data"]["name"]


def on_given(record):
    """ " on NAME" where data were given with ``--data``, else nothing: for what has standard data without a name."""
    name = given_name(record)
    return "" if name is None else f" on {name}"
