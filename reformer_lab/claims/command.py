"""``reformer-ref reproduce NAME``: run a claim of the paper again, stop whenever it suits, and go on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from reformer_lab import records
from reformer_lab.options import Optional, Several

RUNS = Path("runs/reproduce")
RECORDS = Path("records")
PAGE = Path("docs/claims.md")
LOG = "log.txt"


@dataclass(frozen=True)
class ReproduceCommand:
    """Run a claim of the paper again: train what it compares, evaluate, write the record, draw its pictures.

    Stopped or killed at any moment, the same command goes on from there; what is finished is not run again. The
    configuration is reformer_lab/claims/configs/NAME.json.
    """

    name: tyro.conf.Positional[Optional[str]] = None  # a claim by its name; --list names them
    list: bool = False  # what there is, how long it takes, what has been recorded (in --out, if given)
    table: bool = False  # write the table of all claims to docs/claims.md (from the records in --out, if given)
    smoke: bool = False  # a tiny version, in seconds, that shows nothing but that it works
    seeds: Several[int] = None  # instead of those in the configuration
    only: Several[str] = None  # sub-runs whose names begin like this; the record takes all there are
    data: Optional[Path] = None  # a text, images, sentence pairs of your own, where a claim uses some
    jobs: int = 1  # sub-runs side by side, each in a process of its own
    threads: Optional[int] = None  # CPU threads of each sub-run (default: the cores, divided by the jobs)
    runs: Optional[Path] = None  # folder of the runs (default: runs/reproduce; smoke versions: runs/smoke)
    out: Optional[Path] = None  # folder of the record (default: records; with --smoke or --data that of the runs)
    no_progress: bool = False  # no progress bars
    no_record: bool = False  # run, but write neither record nor pictures

    def run(self, line: str) -> int:
        """Run the claim; the exit code, 130 or 143 after Ctrl-C or SIGTERM, 1 if a sub-run failed."""
        if self.table:
            write_page(self.out or records.FOLDER)
            return 0
        if self.list or self.name is None:
            print(listing(self.out or records.FOLDER))
            return 0
        from reformer_lab.benchmarks.record import require_place
        from reformer_lab.claims import OWN_DATA, claim
        from reformer_lab.claims.experiment import planned, read_config
        from reformer_lab.training.processes import StopRequest

        module = claim(self.name)
        config = read_config(self.name, self.smoke, self.seeds)
        if self.data is not None and self.name not in OWN_DATA:
            raise ValueError(f"--data has no meaning for {self.name}, only for {', '.join(OWN_DATA)}")
        runs = planned(module, config, self.data)
        names = [name for name in runs if not self.only or _is_named(name, self.only, runs)]
        for word in self.only or ():
            if not any(_is_named(name, [word], runs) for name in runs):
                raise ValueError(f"--only {word}: {self.name} has the runs {', '.join(runs)}")
        jobs = self.jobs_of(names, config)
        work = _Work(self, line, module, config, runs, self.threads_of(jobs))
        if not self.no_record:  # say now what cannot be written or read, not after hours of training
            require_place("--out", work.out / f"{self.name}.json")
            work.finished()
        with StopRequest(lambda text: print(f"\n{text}", flush=True)) as stop:
            failed = work.in_turn(names, stop) if jobs == 1 else work.side_by_side(names, jobs, stop)
        if failed is None:
            return stop.exit_code
        if not self.no_record:
            work.conclude()
        for name in failed:
            print(f"reformer-ref: {name} failed; see {work.folder / name / LOG}", file=sys.stderr)
        return 1 if failed else 0

    def jobs_of(self, names, config):
        """How many sub-runs go on at a time."""
        from reformer_ref._arguments import require_int

        jobs = min(require_int("--jobs", self.jobs, 1, 256), len(names))
        if config.get("alone") and jobs > 1:
            raise ValueError(f"{self.name} measures time or memory of the machine: leave out --jobs")
        return jobs

    def threads_of(self, jobs):
        """CPU threads of each sub-run."""
        from reformer_ref._arguments import require_int

        from reformer_lab.benchmarks.record import usable_cores

        if self.threads is None:
            return max(1, usable_cores() // jobs)
        return require_int("--threads", self.threads, 1, 4096)


def _is_named(name, only, runs):
    """Whether a sub-run is asked for: by its whole name, or by a beginning that is no whole name itself."""
    return any(name == word or (word not in runs and name.startswith(word)) for word in only)


class _Work:
    """The sub-runs of a claim, in one process or in several, and the record after each of them."""

    def __init__(self, command, line, module, config, runs, threads):
        self.command = command
        self.line = line
        self.module = module
        self.config = config
        self.runs = runs
        self.threads = threads
        self.folder = (command.runs or (Path("runs/smoke") if command.smoke else RUNS)) / command.name
        self.out = command.out or (self.folder if command.smoke or command.data else RECORDS)

    def in_turn(self, names, stop):
        """One after the other, in this process: [] when all are done, None after a stop."""
        import torch

        from reformer_lab.claims.experiment import Context, Interrupted, run_here

        torch.set_num_threads(self.threads)
        parent = os.getppid()

        def should_stop():
            # with another parent, the process that started this one has ended
            return stop() or (self.command.no_record and os.getppid() != parent)

        for number, name in enumerate(names, 1):
            self.say(f"{name} ({number} of {len(names)})")
            context = Context(
                self.folder / name, self.threads, self.command.data, not self.command.no_progress, self.say, should_stop
            )
            try:
                context.check_stop()
                run_here(self.module, name, self.runs[name], context)
            except Interrupted as error:
                self.say(str(error))
                return None
            self.record()
        return []

    def side_by_side(self, names, jobs, stop):
        """So many at a time, each in a process of its own: the names of those that failed, None after a stop."""
        waiting, running, failed = list(names), {}, []
        try:
            while (waiting and not failed and not stop()) or running:
                while waiting and len(running) < jobs and not failed and not stop():
                    name = waiting.pop(0)
                    running[name] = self.start(name)
                    self.say(f"{name} begins or goes on ({len(names) - len(waiting)} of {len(names)})")
                time.sleep(0.2)
                if stop():
                    _pass_on(running.values(), stop.exit_code - 128)
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    code = running.pop(name).returncode
                    if code == 0:
                        self.say(f"{name} is done")
                        self.record()
                    elif not stop():
                        failed.append(name)
        finally:
            _pass_on(running.values(), signal.SIGTERM)
        return None if stop() else failed

    def start(self, name):
        """The process of one sub-run; what it says goes to its log."""
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        asked = self.command
        command = [sys.executable, "-m", "reformer_lab", "reproduce", asked.name, "--only", name, "--no-record"]
        command += ["--threads", str(self.threads), "--runs", str(self.folder.parent)]
        command += ["--smoke"] * asked.smoke + (["--data", str(asked.data)] if asked.data else [])
        command += ["--seeds", *map(str, self.config["seeds"])] if asked.seeds else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with open(self.folder / name / LOG, "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def finished(self):
        """What the finished sub-runs left; ValueError if something is damaged or was run with other settings."""
        from reformer_lab.claims.experiment import finished

        results = [finished(self.folder / name, settings) for name, settings in self.runs.items()]
        return [result for result in results if result is not None]

    def record(self):
        """Write the record of what is finished; the dict, None if that is nothing or no record is wanted."""
        from reformer_lab.benchmarks import record
        from reformer_lab.claims.experiment import make_record

        done = [] if self.command.no_record else self.finished()
        if not done:
            return None
        name = self.command.name
        data = make_record(name, self.module, self.config, self.runs, done, self.line, self.command.smoke)
        record.write(self.out / f"{name}.json", data)
        return data

    def conclude(self):
        """The record, its pictures in the folder of the runs, and its lines of the claims table, printed."""
        from reformer_lab.claims.plots import pictures
        from reformer_lab.claims.table import as_text

        data = self.record()
        if data is None:
            return
        for name, draw in pictures(data).items():
            (self.folder / f"{name}.png").write_bytes(draw().png())
        print(as_text(self.module.rows(data)))
        self.say(f"written {self.out / self.command.name}.json ({data['minutes']} minutes in all)")

    def say(self, line):
        """A line on stdout, at once; "?" for what a file's name may have and UTF-8 cannot."""
        print(line.encode("utf-8", "replace").decode("utf-8"), flush=True)


def write_page(folder):
    """The table of all claims, from the records in ``folder``, as a page of the documentation."""
    from reformer_lab.claims.table import claims_markdown
    from reformer_lab.training.files import write_atomically

    text = claims_markdown(folder)
    PAGE.parent.mkdir(exist_ok=True)
    write_atomically(PAGE, text.encode())
    print(f"written {PAGE}", flush=True)


def _pass_on(processes, number):
    """A signal to every process that still runs, once; then wait for it to write its checkpoint."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
    for process in processes:
        process.wait()


def listing(folder):
    """What ``--list`` prints: a line for every claim, with what was recorded in ``folder``."""
    from reformer_lab.claims import NAMES
    from reformer_lab.claims.experiment import read_config
    from reformer_lab.claims.table import stored

    lines = []
    for name in NAMES:
        config = read_config(name)
        record = stored(name, folder)
        if record is None:
            state = f"about {config['minutes']} minutes (predicted)"
        else:
            state = f"recorded {record['date'][:10]}, {record['minutes']:.0f} minutes"
            state += "" if record["complete"] else f", {len(record['missing'])} sub-runs missing"
        lines.append(f"{name:<14} {state:<48} {config['about']}")
    return "\n".join(lines)
