"""How a claim is run: its configuration, its sub-runs one after the other or side by side, and its record.

A claim is a module with four functions, a file ``configs/NAME.json`` and an entry in `plots.PICTURES`::

    sub_runs(config)            {name: settings}: what must be run; settings are all that determines a sub-run
    run(settings, context)      runs one of them, in ``context.folder``; a dict of JSON values
    summarise(config, results)  what the record says beside the results {name: dict} that are there so far
    rows(record)                the lines of the claims table, see `table`

A sub-run that is finished leaves ``result.json`` in its folder and is never run again; one that was interrupted goes on
from its checkpoint. So a claim can be stopped or killed at any moment and started again with the same command.
"""

import hashlib
import itertools
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from reformer_ref._arguments import UNCLEAR, require_choice, require_int, short_repr

from reformer_lab.claims import NAMES
from reformer_lab.training.files import as_path, open_regular, write_json

CONFIGS = Path(__file__).with_name("configs")
RESULT = "result.json"
MOST_FILES = 100_000  # in a folder of the user's data
MOST_DATA = 1 << 34  # bytes of such a folder
MOST_BYTES = 1 << 30  # of a result or a record


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
    settings: dict = field(default_factory=dict)  # of the sub-run: what goes on from a checkpoint must share them

    def check_stop(self):
        """Raise `Interrupted` if a stop was asked for."""
        if self.should_stop():
            raise Interrupted(f"stopped; go on with the same command ({self.folder})")

    def train(self, model, batch_at, held_out, options, weight_of=None):
        """`training.train` in this folder, going on where it was; the `TrainingResult`. Raises `Interrupted`."""
        from reformer_lab.training.checkpoint import CheckpointError
        from reformer_lab.training.loop import train

        try:
            result = train(
                model, batch_at, held_out, options, folder=self.folder, resume=True, about={"settings": self.settings},
                weight_of=weight_of, progress=self.progress, should_stop=self.should_stop, report=self.report,
            )  # fmt: skip
        except CheckpointError as error:
            raise ValueError(f"{error}; remove {self.folder} to begin this sub-run again") from error
        self.trained += result.seconds
        if result.interrupted:
            raise Interrupted(f"stopped after {result.steps} steps; go on with the same command ({self.folder})")
        return result


def read_config(name, smoke=False, seeds=None):
    """The configuration of a claim: ``configs/NAME.json``, with its smoke version merged in, or with other seeds."""
    require_choice("name", name, NAMES)
    config = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    small = config.pop("smoke", {})
    config = merged(config, small) if smoke else config
    if seeds is not None:
        if "seeds" not in config:
            raise ValueError(f"--seeds has no meaning for {name}, in which nothing is random")
        config["seeds"] = [require_int("--seeds", seed, 0) for seed in seeds]
        if len(set(config["seeds"])) < len(config["seeds"]) or not config["seeds"]:
            raise ValueError(f"--seeds must be different numbers, at least one, got {short_repr(list(seeds))}")
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
    about = None if data is None else {"name": _printable(as_path("data", data).name), "sha256": checksum(data)}
    return {name: {**settings, "data_given": about} for name, settings in runs.items()}


def checksum(path):
    """SHA-256 of a file; of a folder, of the names and contents of its files. ValueError if there is nothing."""
    path = as_path("path", path)
    try:
        if path.is_dir():
            paths = list(itertools.islice(path.rglob("*"), MOST_FILES + 1))
            if len(paths) > MOST_FILES:
                raise ValueError(f"--data {path} must hold at most {MOST_FILES:,} files")
            paths = [p for p in paths if p.is_file()]
            if sum(p.stat().st_size for p in paths) > MOST_DATA:
                raise ValueError(f"--data {path} must hold at most {MOST_DATA:,} bytes")
            files = sorted((p.relative_to(path).as_posix(), _digest(p)) for p in paths)
            return hashlib.sha256(json.dumps(files).encode()).hexdigest()
        if path.exists() and not path.is_file():
            raise ValueError(f"--data {path} must be a file or a folder, it is a pipe or a device")
        return _digest(path)
    except OSError as error:
        raise ValueError(f"--data {path} cannot be read: {error.strerror or error}") from None


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finished(folder, settings):
    """What a finished sub-run left in its folder, or None. ValueError if that was a run of other settings."""
    path = as_path("folder", folder) / RESULT
    try:
        wanted = json.loads(json.dumps(settings, allow_nan=False))
    except UNCLEAR:
        raise TypeError(f"settings must be JSON values, got {short_repr(settings)}") from None
    if not os.path.lexists(path):
        return None
    stored = read_object(path, {"name": str, "seconds": is_time, "settings": dict, "result": dict, "about": dict})
    if stored["settings"] != wanted:
        raise ValueError(f"{path} is of a run with other settings; give another folder (--runs), or remove that one")
    return stored


def read_object(path, keys, equal=()):
    """The dict in a JSON file; ValueError, with what to do, if it is damaged.

    keys: {name: type, or function that says yes or no} that must be there; equal: {name: value} that must be.
    """
    path = as_path("path", path)
    try:
        with open_regular(os.path.realpath(path), MOST_BYTES) as file:
            content = json.loads(file.read(), parse_constant=_refuse_constant)
        if not isinstance(content, dict):
            raise TypeError("it holds no object")
        wrong = [
            key for key, kind in keys.items()
            if not (isinstance(content[key], kind) if isinstance(kind, type) else kind(content[key]))
        ]  # fmt: skip
        wrong += [key for key, value in dict(equal).items() if content[key] != value]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except UNCLEAR as error:
        wrong = [f"{type(error).__name__}: {error}"]
    if wrong:
        raise ValueError(
            f"{path} is damaged ({short_repr(', '.join(wrong))}); remove it and run the same command again"
        )
    return content


def is_time(value):
    """Whether this is a number that seconds or minutes can be."""
    return isinstance(value, (int, float)) and 0.0 <= value < 1e12


def _refuse_constant(name):
    raise ValueError(f"{name} is no JSON")


def _printable(text):
    """The text without what UTF-8 cannot hold: a file's name may have it, a record cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def run_here(module, name, settings, context):
    """Run one sub-run in this process, unless it is finished: what it left.

    That is its name, seconds, settings, result, and "about": the date and machine on which it was finished.
    """
    from reformer_lab.benchmarks import record

    done = finished(context.folder, settings)
    if done is not None:
        return done
    context.folder.mkdir(parents=True, exist_ok=True)
    spent, context.settings = _Spent(context.folder), settings
    with spent:
        result = module.run(settings, context)
    seconds = round(max(spent.total, context.trained), 1)
    about = {key: value for key, value in record.about(name, context.threads).items() if key != "command"}
    done = {"name": name, "seconds": seconds, "about": about, "settings": settings, "result": result}
    write_json(context.folder / RESULT, done)
    return json.loads((context.folder / RESULT).read_text(encoding="utf-8"))


class _Spent:
    """Wall time of a sub-run over all its attempts. What a killed attempt did after its last second here is lost."""

    def __init__(self, folder):
        self.path, self.begun = folder / "seconds.json", time.perf_counter()
        there = os.path.lexists(self.path)
        self.before = read_object(self.path, {"seconds": is_time})["seconds"] if there else 0.0

    @property
    def total(self):
        return self.before + time.perf_counter() - self.begun

    def __enter__(self):
        return self

    def __exit__(self, *error):
        write_json(self.path, {"seconds": self.total})


def config_of(model, **fields):
    """The ReformerConfig of the JSON values ``model``, with further fields."""
    from reformer_ref.model.config import ReformerConfig

    return ReformerConfig.from_json(json.dumps({**fields, **model}))


def options_of(settings):
    """The `TrainingOptions` of a sub-run: "training" without the size of a batch, and the seed."""
    from reformer_lab.training.schedule import TrainingOptions

    values = {name: value for name, value in settings["training"].items() if name != "batch"}
    return TrainingOptions(seed=settings["seed"], **values)


def thinned(points, most=200):
    """At most about ``most`` of the points, evenly, always with the last."""
    stride = max(1, -(-len(points) // most))
    return [list(p) for p in points[stride - 1 :: stride]] + ([list(points[-1])] if len(points) % stride else [])


def make_record(name, module, config, runs, done, command, smoke):
    """The record of a claim: what was asked, what is there so far, what is missing, and what it comes to.

    runs: {name: settings} of all sub-runs; done: what the finished ones left. Date and machine are those of the newest.
    """
    from reformer_lab.benchmarks.record import without_folders

    missing = [run for run in runs if run not in {d["name"] for d in done}]
    try:
        about = max((d["about"] for d in done), key=lambda about: about["date"])
        summary = module.summarise(config, {d["name"]: d["result"] for d in done})
    except UNCLEAR as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"a {RESULT} of {name} is damaged, or of another version ({reason}); remove it") from error
    return {
        "command": without_folders(_printable(command)), **about,
        "claim": name, "smoke": smoke, "complete": not missing, "missing": missing,
        "minutes": round(sum(d["seconds"] for d in done) / 60.0, 2), "config": config, "runs": done,
        **summary,
    }  # fmt: skip
