"""``reformer-ref classroom``: make a course, grade it, rehearse a whole round.

What needs nbgrader (extra ``grading``) is imported by the command that runs it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from reformer_lab.options import Optional, Several


@dataclass(frozen=True)
class GenerateCommand:
    """Make the releases, and with --seed a course of its own variant."""

    seed: Optional[int] = None  # of the graded mode: draws the conventions of your course; keep it to yourself
    out: Optional[Path] = None  # folder of the course (with --seed), or of the open releases
    only: Several[str] = None  # assignments, such as A1 (all if left out)


@dataclass(frozen=True)
class ValidateCommand:
    """Prove that a course gives full marks to its answers and none to blanks."""

    course: tyro.conf.Positional[Path]  # folder that `generate --seed` made
    workers: int = 2  # processes


@dataclass(frozen=True)
class GradeCommand:
    """Grade what was handed in, write feedback pages and marks.csv."""

    course: tyro.conf.Positional[Path]  # folder that `generate --seed` made
    submissions: Optional[Path] = None  # folder of student/assignment/notebook.ipynb, copied into the course first
    only: Several[str] = None  # assignments, such as A1 (all if left out)
    workers: int = 2  # processes
    seconds: int = 20  # time limit of one cell


@dataclass(frozen=True)
class FeedbackCommand:
    """Write the pages and marks.csv again, after marking by hand."""

    course: tyro.conf.Positional[Path]  # folder of the course


@dataclass(frozen=True)
class DemoCommand:
    """Rehearse a whole round with made-up students."""

    seed: int = 1  # of the variant
    out: Path = Path("runs/classroom")  # folder, emptied first
    students: int = 10  # how many hand in, at least 4
    only: Several[str] = None  # assignments, such as A1 (all if left out)
    workers: int = 2  # processes


@dataclass(frozen=True)
class ClassroomCommand:
    """Make assignments and courses, and grade them."""

    command: (
        Annotated[GenerateCommand, tyro.conf.subcommand("generate")]
        | Annotated[ValidateCommand, tyro.conf.subcommand("validate")]
        | Annotated[GradeCommand, tyro.conf.subcommand("grade")]
        | Annotated[FeedbackCommand, tyro.conf.subcommand("feedback")]
        | Annotated[DemoCommand, tyro.conf.subcommand("demo")]
    )

    def run(self, line: str) -> int:
        """Run the command; its exit code."""
        functions = {
            GenerateCommand: run_generate, ValidateCommand: run_validate, GradeCommand: run_grade,
            FeedbackCommand: run_feedback, DemoCommand: run_demo,
        }  # fmt: skip
        return functions[type(self.command)](self.command)


def _needs_nbgrader():
    from importlib.util import find_spec

    if find_spec("nbgrader") is None:
        raise ModuleNotFoundError("this needs nbgrader: pip install 'reformer_ref[grading]'")


def _named(given, known):
    """The full names of assignments given by their beginnings; None if none are given."""
    if not given:
        return None
    for prefix in given:
        if not any(name.startswith(prefix) for name in known):
            raise ValueError(f"--only must name some of {', '.join(known)}, got {prefix!r}")
    return [name for name in known if any(name.startswith(prefix) for prefix in given)]


def run_generate(args):
    """``generate``: open releases, or a course of a drawn variant with a bundle for its students."""
    _needs_nbgrader()
    from reformer_lab.classroom import release

    names = _named(args.only, release.assignments())
    if args.seed is None:
        folder = args.out or release.RELEASES
        release.generate(folder, names=names)
        print(f"open releases of {', '.join(names or release.assignments())} in {folder}")
        return 0
    from reformer_lab.classroom.course import set_up
    from reformer_lab.classroom.variants import Variant

    course = args.out or Path("runs/course")
    variant = Variant.draw(args.seed)
    if course.exists() and any(course.iterdir()):
        raise ValueError(f"{course} is not empty: a course is made once (choose another --out, or remove it)")
    set_up(course, variant, names)
    packed = release.bundle(course / "students", variant, names)
    print(f"course in {course}\nfor students: {packed}\nconventions: {variant.literal()}")
    return 0


def run_validate(args):
    """``validate``: the answers of a course get full marks, its blank releases none."""
    _needs_nbgrader()
    import tempfile

    from reformer_lab.classroom import rehearsal
    from reformer_lab.classroom.course import assignments, grade_class, set_up
    from reformer_lab.classroom.variants import Variant

    variant = Variant.from_json((args.course / "variant.json").read_text("utf-8"))
    names = assignments(args.course)
    with tempfile.TemporaryDirectory() as folder:
        set_up(folder, variant, names)
        for name in names:
            rehearsal.write(folder, "reference", name, rehearsal.references(folder, name))
            rehearsal.write(folder, "blank", name, {})
        graded = grade_class(folder, workers=args.workers, feedback=False)
        wrong = 0
        for result in graded:
            full = rehearsal.full_marks(folder, result.assignment)
            due = sum(full.values()) if result.student == "reference" else 0
            wrong += result.total != due
            print(
                f"{result.assignment:<18} {result.student:<10} {result.total:g} of {due:g}{_mark(result.total == due)}"
            )
    return 1 if wrong else 0


def run_grade(args):
    """``grade``: collect, grade, feedback, marks."""
    _needs_nbgrader()
    from reformer_lab.classroom.course import assignments, collect, grade_class

    if not (args.course / "gradebook.db").is_file():
        raise ValueError(f"{args.course} is no course: make one with `classroom generate --seed …`")
    only = _named(args.only, assignments(args.course))
    begun = time.perf_counter()
    if args.submissions is not None:
        for note in collect(args.submissions, args.course):
            print("left out:", note)
    graded = grade_class(args.course, only or (), args.workers, args.seconds, progress=_show)
    minutes = (time.perf_counter() - begun) / 60
    print(f"\n{len(graded)} notebooks in {minutes:.1f} minutes; marks: {args.course / 'marks.csv'}")
    if by_hand := sum(len(result.by_hand) for result in graded):
        print(f"{by_hand} answers are to be marked by hand: `jupyter lab` in {args.course}, then the form grader")
    return 0


def run_feedback(args):
    """``feedback``: pages and marks of what is graded, with what was given by hand since."""
    _needs_nbgrader()
    from reformer_lab.classroom.course import export, write_feedback

    graded = sorted(args.course.glob("autograded/*/*"))
    if not graded:
        raise ValueError(f"nothing is graded in {args.course}: run `classroom grade` first")
    for path in graded:
        write_feedback(args.course, path.parent.name, path.name)
    print(f"{len(graded)} pages in {args.course / 'feedback'}; marks: {export(args.course)}")
    return 0


def _show(result):
    notes = f"   {len(result.remarks)} remarks" if result.remarks else ""
    print(f"{result.student:<24} {result.assignment:<18} {result.total:>5g} of {result.points:g}{notes}", flush=True)


def _mark(right):
    return "" if right else "  WRONG"


def run_demo(args):
    """``demo``: a round with made-up students; 1 if a mark is not what it must be."""
    _needs_nbgrader()
    from reformer_lab.classroom import release
    from reformer_lab.classroom.rehearsal import rehearse
    from reformer_lab.classroom.variants import Variant

    if args.students < 4:
        raise ValueError(f"--students must be at least 4, got {args.students}")
    names = _named(args.only, release.assignments())
    begun = time.perf_counter()
    results = rehearse(args.out, Variant.draw(args.seed), args.students, names, args.workers, progress=_show)
    minutes, wrong = (time.perf_counter() - begun) / 60, 0
    print(f"\n{'student':<14} {'assignment':<18} {'due':>5} {'got':>5}")
    for student, assignment, due, result in results:
        same = all(result.marks.get(part, (None,))[0] == marks for part, marks in due.items())
        wrong += not same
        hand = f"  ({len(result.by_hand)} by hand)" if result.by_hand else ""
        wrong_mark = "" if same else "  WRONG"
        print(f"{student:<14} {assignment:<18} {sum(due.values()):>5g} {result.total:>5g}{hand}{wrong_mark}")
    print(f"\n{len(results)} notebooks in {minutes:.1f} minutes; marks.csv and pages (feedback) in {args.out}")
    return 1 if wrong else 0
