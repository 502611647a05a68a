"""The class round on one machine: collect what was handed in, grade it, write feedback pages and the marks.

A course is a folder that nbgrader understands: ``source``, ``release``, ``submitted``, ``autograded``, ``feedback``,
``gradebook.db``, ``nbgrader_config.py``; so its form grader can be used for the parts that are marked by hand.
"""

import csv
import json
import os
import re
import shutil
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from reformer_lab.classroom import material
from reformer_lab.classroom.submissions import REMARKS

NAMES = re.compile(r"[\w.@-]+( [\w.@-]+)*")  # of students: nothing that a path or a pattern gives a meaning to
CELL_SECONDS = 20


@dataclass(frozen=True)
class Graded:
    """What became of one submission: marks by part ({grade id: (marks, points)}), parts to mark by hand, remarks."""

    student: str
    assignment: str
    marks: dict
    by_hand: tuple = ()
    remarks: tuple = ()
    seconds: float = 0.0

    @property
    def total(self):
        return sum(marks for marks, _ in self.marks.values())

    @property
    def points(self):
        return sum(points for _, points in self.marks.values())


def set_up(course, variant, names=None):
    """Make a course folder of a variant: instructor's notebooks, releases, and the gradebook with all parts and points.

    names: of assignments (all if None). Errors: RuntimeError with nbgrader's words if a source notebook is not sound.
    """
    from nbgrader.converters import GenerateAssignment

    from reformer_lab.classroom import cases, release

    course = Path(course).resolve()
    course.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(material.FOLDER / "nbgrader_config.py", course / "nbgrader_config.py")
    (course / "variant.json").write_text(variant.to_json() + "\n", encoding="utf-8")
    names = list(names or release.assignments())
    release.write_sources(course / "source", variant, names)
    for name in names:
        number = name.partition("_")[0]
        cases.record(number, variant.only(number), course / "source" / name / cases.FOLDER)
        _convert(GenerateAssignment, course, name)


def assignments(course):
    """The names of a course's assignments, in order."""
    return sorted(path.stem for path in Path(course).glob("release/*/*.ipynb") if path.stem == path.parent.name)


def collect(folder, course):
    """Copy ``folder``/student/assignment/notebook.ipynb into the course; a list of sentences on what was left out.

    Only the notebook of each assignment is taken; where it has another name and is the only one, that one.
    """
    notes, known = [], assignments(course)
    for student in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
        if not NAMES.fullmatch(student.name):
            notes.append(f"{student.name!r}: not a name for a student's folder (letters, digits, . @ - _ only)")
            continue
        for handed_in in sorted(path for path in student.iterdir() if path.is_dir()):
            if handed_in.name not in known:
                notes.append(f"{student.name}: there is no assignment {handed_in.name!r}")
                continue
            notebooks = [path for path in sorted(handed_in.glob("*.ipynb")) if path.is_file() and not path.is_symlink()]
            exact = [path for path in notebooks if path.stem == handed_in.name] or notebooks
            if len(exact) != 1:
                notes.append(f"{student.name}, {handed_in.name}: {len(exact)} notebooks, and none has the right name")
                continue
            target = Path(course, "submitted", student.name, handed_in.name)
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            shutil.copyfile(exact[0], target / f"{handed_in.name}.ipynb")
    return notes


def grade_class(course, only=(), workers=2, seconds=CELL_SECONDS, feedback=True, progress=None, students=()):
    """Grade all submissions of a course, in several processes; a list of ``Graded``, and the CSV files.

    only, students: names of assignments and of students (all if empty). seconds: time limit of one cell. progress:
    called with each ``Graded``. A submission that cannot be graded at all is in the list, without marks and with a
    remark; the others go on.
    """
    course = Path(course).resolve()
    jobs = [
        (path.parent.name, path.name)
        for path in sorted((course / "submitted").glob("*/*"))
        if path.name in assignments(course)
        and (not only or path.name in only)
        and (not students or path.parent.name in students)
    ]
    if not jobs:
        raise ValueError(f"there is nothing to grade in {course / 'submitted'} (student/assignment/notebook.ipynb)")
    with _gradebook(course) as gradebook:  # students are made here, so that no two processes make the same one
        for student in sorted({student for student, _ in jobs}):
            gradebook.update_or_create_student(student)
    graded, context = [], get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_begin_worker) as pool:
        waiting = [pool.submit(_grade_submission, str(course), *job, seconds, feedback) for job in jobs]
        for done in as_completed(waiting):
            graded.append(done.result())
            if progress is not None:
                progress(graded[-1])
    graded.sort(key=lambda result: (result.student, result.assignment))
    export(course)
    return graded


def _begin_worker():
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "JUPYTER_PREFER_ENV_PATH"), "1")
    warnings.simplefilter("ignore")  # nbgrader's database layer warns on every submission


def _grade_submission(course, student, assignment, seconds, feedback):
    from nbgrader.converters import Autograde

    begun = time.perf_counter()
    course = Path(course)
    for attempt in (1, 2, 3):  # a kernel may fail to start on a busy machine
        try:
            _convert(Autograde, course, assignment, student, seconds)
            if feedback:
                write_feedback(course, student, assignment)
            return read_marks(course, student, assignment, time.perf_counter() - begun)
        except RuntimeError as error:
            with (course / "errors.log").open("a", encoding="utf-8") as log:
                log.write(f"{student}, {assignment}, attempt {attempt}:\n{error}\n\n")
    _no_marks(course, student, assignment)
    return read_marks(course, student, assignment, time.perf_counter() - begun)


def write_feedback(course, student, assignment):
    """Write the page that a student gets back about a graded notebook; returns its path."""
    from nbgrader.converters import GenerateFeedback

    _convert(GenerateFeedback, Path(course).resolve(), assignment, student)
    return Path(course, "feedback", student, assignment, f"{assignment}.html")


def _convert(kind, course, assignment, student=".", seconds=None):
    """Run one of nbgrader's converters for one assignment (of one student); RuntimeError with its log if it fails."""
    from nbgrader.coursedir import CourseDirectory
    from nbgrader.utils import capture_log

    config = _config(course, seconds)
    directory = CourseDirectory(config=config, assignment_id=assignment, student_id=student)
    converter = kind(coursedir=directory, config=config)
    converter.force = True
    converter.log.propagate = False
    path = os.environ.get("PATH", "")  # nbgrader calls alembic by its bare name
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])
    try:
        result = capture_log(converter)
    finally:
        os.environ["PATH"] = path
    if not result["success"]:
        lines = [line for line in (result.get("log", "") + result["error"]).splitlines() if line.strip()]
        raise RuntimeError("\n".join(lines))


def _config(course, seconds=None):
    from traitlets.config import Config

    from reformer_lab.classroom.autograde import configure

    config = Config()
    configure(config)
    config.CourseDirectory.root = str(course)
    config.CourseDirectory.db_url = _url(course)
    if seconds is not None:
        config.SturdyExecute.timeout = seconds
    return config


def _url(course):
    return f"sqlite:///{Path(course) / 'gradebook.db'}?timeout=60"


def _gradebook(course):
    from nbgrader.api import Gradebook

    return Gradebook(_url(course))


def _no_marks(course, student, assignment):
    """Zero for every part of a submission, so that nothing of an earlier round is left."""
    with _gradebook(course) as gradebook:
        for notebook in gradebook.update_or_create_submission(assignment, student).notebooks:
            for grade in notebook.grades:
                grade.auto_score, grade.needs_manual_grade = 0, False
        gradebook.db.commit()


def read_marks(course, student, assignment, seconds=0.0):
    """The ``Graded`` of one submission, from the gradebook and the graded notebook."""
    with _gradebook(course) as gradebook:
        submission = gradebook.find_submission(assignment, student)
        grades = [grade for notebook in submission.notebooks for grade in notebook.grades]
        marks = {grade.name: (grade.score, grade.max_score) for grade in sorted(grades, key=lambda grade: grade.name)}
        by_hand = tuple(sorted(grade.name for grade in grades if grade.needs_manual_grade))
    return Graded(student, assignment, marks, by_hand, _remarks(course, student, assignment), seconds)


def _remarks(course, student, assignment):
    path = Path(course, "autograded", student, assignment, f"{assignment}.ipynb")
    if not path.is_file():
        return ("could not be graded: see errors.log in the course",)
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    lines = "".join(first["source"]).splitlines() if first.get("id") == REMARKS else []
    return tuple(line[2:] for line in lines if line.startswith("* "))


def export(course):
    """Write ``marks.csv``, a line for each student, and ``marks_by_part.csv``, one for each part.

    Returns the path of the first.
    """
    course, known = Path(course), assignments(course)
    with _gradebook(course) as gradebook:
        handed_in = [(s.student.id, name) for name in known for s in gradebook.assignment_submissions(name)]
        points = {name: gradebook.find_assignment(name).max_score for name in known}
    graded = {pair: read_marks(course, *pair) for pair in sorted(handed_in)}
    with (course / "marks_by_part.csv").open("w", newline="", encoding="utf-8") as file:
        write = csv.writer(file).writerow
        write(["student", "assignment", "part", "marks", "points", "marked by hand"])
        for (student, name), result in graded.items():
            for grade_id, (marks, most) in result.marks.items():
                to_do = "to do" if grade_id in result.by_hand else ""
                write([student, name, grade_id, f"{marks:g}", f"{most:g}", to_do])
    with (course / "marks.csv").open("w", newline="", encoding="utf-8") as file:
        write = csv.writer(file).writerow
        write(["student", *known, "total", "points", "remarks"])
        for student in sorted({student for student, _ in graded}):
            results = [graded.get((student, name)) for name in known]
            remarks = [f"{r.assignment}: {remark[:160]}" for r in results if r for remark in r.remarks]
            remarks += [f"{r.assignment}: {name} is to be marked by hand" for r in results if r for name in r.by_hand]
            totals = [f"{r.total:g}" if r else "" for r in results]
            total = sum(r.total for r in results if r)
            write([student, *totals, f"{total:g}", f"{sum(points.values()):g}", " | ".join(remarks)])
    return course / "marks.csv"
