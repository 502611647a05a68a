"""``reformer-ref reproduce NAME``: run a claim of the paper again, stop whenever it suits, and go
on.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RUNS = Path("runs/reproduce")
FIGURES = Path("records")
PAGE = Path("docs/claims.md")
LOG = "log.txt"


def add_reproduce_arguments(parser):
    """Options of the command ``reproduce``."""
    from reformer_lab.claims.claims import NAMES

    parser.description = (
        "Run a claim of the paper again: train what it compares, evaluate, write the record to records/NAME.json "
        "and draw its picture. Stopped or killed at any moment, the same command goes on from there; what is finished "
        "is not run again. The configuration is reformer_lab/claims/configs/NAME.json."
    )
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    add("--list", action="store_true", help="what there is, how long it takes, what has been recorded")
    add("--table", action="store_true", help=f"write the table of all claims from the records to {PAGE}")
    add("--smoke", action="store_true", help="a tiny version, in seconds, that shows nothing but that it works")
    add("--seeds", type=int, nargs="+", metavar="N", help="instead of those in the configuration")
    add("--only", nargs="+", metavar="RUN", help="sub-runs whose names begin like this; the record takes all there are")
    add("--data", type=Path, metavar="PATH", help="a text, images, sentence pairs of your own, where a claim uses some")
    add("--jobs", type=int, default=1, help="sub-runs side by side, each in a process of its own")
    add("--threads", type=int, help="CPU threads of each sub-run (default: the cores, divided by the jobs)")
    add("--runs", type=Path, help="folder of the runs (default: runs/reproduce; smoke versions: runs/smoke)")
    what = "folder of the record (default: records; smoke versions, and with --data: that of the runs)"
    add("--out", type=Path, help=what)
    add("--no-progress", action="store_true", help="no progress bars")
    add("--no-record", action="store_true", help="run, but write neither record nor picture")
    parser.set_defaults(run=run_reproduce, command="reformer-ref reproduce")


def run_reproduce(args):
    """``reproduce``: the exit code; 130 or 143 after Ctrl-C or SIGTERM, 1 if a sub-run failed."""
    if args.table:
        write_page()
        return 0
    if args.list or args.name is None:
        print(listing(args.out or FIGURES))
        return 0
    from reformer_ref._arguments import require_int

    from reformer_lab.benchmarks.record import require_place, usable_cores
    from reformer_lab.claims.claims import OWN_DATA, claim
    from reformer_lab.claims.experiment import planned, read_config
    from reformer_lab.training.processes import StopRequest

    module, config = claim(args.name), read_config(args.name, args.smoke, args.seeds)
    if args.data is not None and args.name not in OWN_DATA:
        raise ValueError(f"--data has no meaning for {args.name}, only for {', '.join(OWN_DATA)}")
    runs = planned(module, config, args.data)
    wanted = [name for name in runs if not args.only or _is_named(name, args.only, runs)]
    for word in args.only or ():
        if not any(_is_named(name, [word], runs) for name in runs):
            raise ValueError(f"--only {word}: {args.name} has the runs {', '.join(runs)}")
    jobs = min(require_int("--jobs", args.jobs, 1, 256), len(wanted))
    if config.get("alone") and jobs > 1:
        raise ValueError(f"{args.name} measures time or memory of the machine: leave out --jobs")
    default = max(1, usable_cores() // jobs)
    args.threads = default if args.threads is None else require_int("--threads", args.threads, 1, 4096)
    folder = (args.runs or (Path("runs/smoke") if args.smoke else RUNS)) / args.name
    work = _Work(args, module, config, runs, folder)
    if not args.no_record:  # say now what cannot be written or read, not after hours of training
        require_place("--out", work.out / f"{args.name}.json")
        work.finished()
    with StopRequest(lambda line: print(f"\n{line}", flush=True)) as stop:
        failed = work.here(wanted, stop) if jobs == 1 else work.side_by_side(wanted, jobs, stop)
    if failed is None:
        return stop.exit_code
    if not args.no_record:
        work.conclude()
    for name in failed:
        print(f"reformer-ref: {name} failed; see {folder / name / LOG}", file=sys.stderr)
    return 1 if failed else 0


def _is_named(name, only, runs):
    """Whether a sub-run is asked for: by its whole name, or by a beginning that is no whole name
    itself.
    """
    return any(name == word or (word not in runs and name.startswith(word)) for word in only)


class _Work:
    """The sub-runs of a claim, in one process or in several, and the record after each of them."""

    def __init__(self, args, module, config, runs, folder):
        self.args, self.module, self.config, self.runs, self.folder = (args, module, config, runs, folder)
        self.out = args.out or (folder if args.smoke or args.data else FIGURES)

    def here(self, names, stop):
        """One after the other, in this process: [] when all are done, None after a stop."""
        import torch

        from reformer_lab.claims.experiment import Context, Interrupted, run_here

        torch.set_num_threads(self.args.threads)
        parent = os.getppid()

        def should_stop():
            return stop() or (self.args.no_record and os.getppid() != parent)  # whoever started this one has ended

        for number, name in enumerate(names, 1):
            self.say(f"{name} ({number} of {len(names)})")
            context = Context(
                self.folder / name, self.args.threads, self.args.data, not self.args.no_progress, self.say, should_stop
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
        """So many at a time, each in a process of its own: the names of those that failed, None
        after a stop.
        """
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
        a = self.args
        command = [sys.executable, "-m", "reformer_lab", "reproduce", a.name, "--only", name, "--no-record"]
        command += ["--threads", str(a.threads), "--runs", str(self.folder.parent)]
        command += ["--smoke"] * a.smoke + (["--data", str(a.data)] if a.data else [])
        command += ["--seeds", *map(str, self.config["seeds"])] if a.seeds else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(a.threads)}
        with open(self.folder / name / LOG, "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def finished(self):
        """What the finished sub-runs left; ValueError if something is damaged or was run with other
        settings.
        """
        from reformer_lab.claims.experiment import finished

        found = [finished(self.folder / name, settings) for name, settings in self.runs.items()]
        return [result for result in found if result is not None]

    def record(self):
        """Write the record of what is finished; the dict, None if that is nothing or no record is
        wanted.
        """
        from reformer_lab.benchmarks import record
        from reformer_lab.claims.experiment import make_record

        done = [] if self.args.no_record else self.finished()
        if not done:
            return None
        a = self.args
        data = make_record(a.name, self.module, self.config, self.runs, done, a.command, a.smoke)
        record.write(self.out / f"{a.name}.json", data)
        return data

    def conclude(self):
        """The record, its pictures, and its lines of the claims table, printed."""
        from reformer_lab.claims.table import as_text

        data = self.record()
        if data is None:
            return
        pictures = self.module.pictures(data)
        if self.out == FIGURES:
            from reformer_lab.figures import draw

            draw(pictures, FIGURES.parent)
            write_page()
        else:
            for name, picture in pictures.items():
                (self.out / f"{name}.png").write_bytes(picture().png())
        print(as_text(self.module.rows(data)))
        self.say(f"written {self.out / self.args.name}.json ({data['minutes']} minutes in all)")

    def say(self, line):
        """A line on stdout, at once; "?" for what a file's name may have and UTF-8 cannot."""
        print(line.encode("utf-8", "replace").decode("utf-8"), flush=True)


def write_page():
    """The table of all claims, as a page of the documentation."""
    from reformer_lab.claims.table import claims_markdown
    from reformer_lab.training.files import write_atomically

    PAGE.parent.mkdir(exist_ok=True)
    write_atomically(PAGE, claims_markdown(FIGURES).encode())
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
    from reformer_lab.claims.claims import NAMES
    from reformer_lab.claims.experiment import read_config
    from reformer_lab.claims.table import stored

    lines = []
    for name in NAMES:
        config, record = read_config(name), stored(name, folder)
        if record is None:
            state = f"about {config['minutes']} minutes (predicted)"
        else:
            state = f"recorded {record['date'][:10]}, {record['minutes']:.0f} minutes"
            state += "" if record["complete"] else f", {len(record['missing'])} sub-runs missing"
        lines.append(f"{name:<14} {state:<48} {config['about']}")
    return "\n".join(lines)
