"""How a claim is run: its configuration, its sub-runs one after the other or side by side, and its record.

A claim is a module with five functions and a file ``configs/NAME.json``::

    sub_runs(config)            {name: settings}: what must be run; settings are all that determines a sub-run
    run(settings, context)      runs one of them, in ``context.folder``; a dict of JSON values
    summarise(config, results)  what the record says beside the results {name: dict} that are there so far
    rows(record)                the lines of the claims table, see `table`
    pictures(record)            {name: function that draws it}

A sub-run that is finished leaves ``result.json`` in its folder and is never run again; one that was interrupted goes on
from its checkpoint. So a claim can be stopped or killed at any moment and started again with the same command.
"""

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from reformer_ref.files import write_json
from reformer_ref.validate import require_int, shown

CONFIGS = Path(__file__).with_name("configs")
RESULT = "result.json"


class Interrupted(RuntimeError):
    """A stop was asked for; what was done so far is kept, and the same command goes on from there."""

    exit_code = 130


@dataclass
class Context:
    """Where and how a sub-run is run. data: the user's own file or folder; should_stop: asked now and then."""

    folder: Path
    threads: int = 1
    data: Path | None = None
    progress: bool = False
    report: object = print
    should_stop: object = field(default=lambda: False)
    trained: float = 0.0  # seconds in `train`, those before a kill included

    def check_stop(self):
        """Raise `Interrupted` if a stop was asked for."""
        if self.should_stop():
            raise Interrupted(f"stopped; go on with the same command ({self.folder})")

    def train(self, model, batch_at, held_out, options, about=None, weight_of=None):
        """`training.train` in this folder, going on where it was; the `TrainingResult`. Raises `Interrupted`."""
        from reformer_ref.training import train

        result = train(
            model, batch_at, held_out, options, folder=self.folder, resume=True, about=about, weight_of=weight_of,
            progress=self.progress, should_stop=self.should_stop, report=self.report,
        )  # fmt: skip
        self.trained += result.seconds
        if result.interrupted:
            raise Interrupted(f"stopped after {result.steps} steps; go on with the same command ({self.folder})")
        return result


def read_config(name, smoke=False, seeds=None):
    """The configuration of a claim: ``configs/NAME.json``, with its smoke version merged in, or with other seeds."""
    config = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    small = config.pop("smoke", {})
    config = merged(config, small) if smoke else config
    if seeds is not None:
        if "seeds" not in config:
            raise ValueError(f"--seeds has no meaning for {name}, in which nothing is random")
        config["seeds"] = [require_int("--seeds", seed, 0) for seed in seeds]
        if len(set(config["seeds"])) < len(config["seeds"]) or not config["seeds"]:
            raise ValueError(f"--seeds must be different numbers, at least one, got {shown(list(seeds))}")
    return config


def merged(base, changes):
    """``base`` with ``changes``, dict by dict; everything else, lists too, is replaced."""
    both = dict(base)
    for key, value in changes.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def planned(module, config, data=None):
    """{name: settings} of all sub-runs; with data of the user's, its name and checksum are part of the settings."""
    runs = module.sub_runs(config)
    about = None if data is None else {"name": Path(data).name, "sha256": checksum(data)}
    return {name: {**settings, "data_given": about} for name, settings in runs.items()}


def checksum(path):
    """SHA-256 of a file; of a folder, of the names and sizes of its files. ValueError if there is nothing."""
    path = Path(path)
    try:
        if path.is_dir():
            files = sorted((p.relative_to(path).as_posix(), p.stat().st_size) for p in path.rglob("*") if p.is_file())
            return hashlib.sha256(json.dumps(files).encode()).hexdigest()
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"--data {path} cannot be read: {error.strerror or error}") from None


def finished(folder, settings):
    """What a finished sub-run left in its folder, or None. ValueError if that was a run of other settings."""
    path = Path(folder) / RESULT
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["settings"] != json.loads(json.dumps(settings)):
        raise ValueError(f"{path} is of a run with other settings; give another folder (--runs), or remove that one")
    return stored


def run_here(module, name, settings, context):
    """Run one sub-run in this process, unless it is finished: what it left, with name, seconds, settings, result."""
    done = finished(context.folder, settings)
    if done is not None:
        return done
    context.folder.mkdir(parents=True, exist_ok=True)
    spent = _Spent(context.folder)
    with spent:
        result = module.run(settings, context)
    seconds = round(max(spent.total, context.trained), 1)
    done = {"name": name, "seconds": seconds, "settings": settings, "result": result}
    write_json(context.folder / RESULT, done)
    return json.loads((context.folder / RESULT).read_text(encoding="utf-8"))


class _Spent:
    """Wall time of a sub-run over all its attempts. What a killed attempt did after its last second here is lost."""

    def __init__(self, folder):
        self.path, self.begun = folder / "seconds.json", time.perf_counter()
        self.before = json.loads(self.path.read_text())["seconds"] if self.path.is_file() else 0.0

    @property
    def total(self):
        return self.before + time.perf_counter() - self.begun

    def __enter__(self):
        return self

    def __exit__(self, *error):
        write_json(self.path, {"seconds": self.total})


def make_record(name, module, config, runs, done, command, threads, smoke):
    """The record of a claim: what was asked, what is there so far, what is missing, and what it comes to.

    runs: {name: settings} of all sub-runs; done: what the finished ones left.
    """
    from reformer_ref import record

    missing = [run for run in runs if run not in {d["name"] for d in done}]
    return {
        **record.about(command, threads), "claim": name, "smoke": smoke, "complete": not missing, "missing": missing,
        "minutes": round(sum(d["seconds"] for d in done) / 60.0, 2), "config": config, "runs": done,
        **module.summarise(config, {d["name"]: d["result"] for d in done}),
    }  # fmt: skip
