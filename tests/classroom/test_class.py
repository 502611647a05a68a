"""The whole class, with real kernels: for every assignment and two seeds of variants, marks are what they must be.

One course per seed; its submissions are made up from the reference answers, the wrong solutions and the cheats, and
graded in one round. Wrong solutions of different exercises share a notebook, and so do cheats; in the first assignment
each cheat also comes alone.
"""

import csv
import json
import os

import pytest
from reformer_lab.classroom import course, rehearsal, release
from reformer_lab.classroom.variants import Variant

pytestmark = [pytest.mark.grading, pytest.mark.slow, pytest.mark.timeout(1800)]

SEEDS = tuple(map(int, os.environ.get("GRADING_SEEDS", "1 2").split()))
ASSIGNMENTS = os.environ.get("GRADING_ASSIGNMENTS", "").split() or release.assignments()
CELL_SECONDS = int(os.environ.get("GRADING_SECONDS", "8"))  # more on a busy machine
ALL = [(seed, name) for seed in SEEDS for name in ASSIGNMENTS]
SLOW = [cheat for cheat in rehearsal.cheats() if cheat.get("slow")]
QUICK = [cheat for cheat in rehearsal.cheats() if not cheat.get("slow")]
ANSWERS = [cheat for cheat in QUICK if "answer" in cheat]
WHOLE = [cheat for cheat in QUICK if "answer" not in cheat]


def packed(mistakes):
    """Wrong solutions in few groups, of which no two touch the same answer or lose the same part."""
    groups = []
    for mistake in mistakes:
        touched = set(mistake["cells"]) | set(mistake["loses"])
        group = next((group for group, used in groups if not used & touched), None)
        if group is None:
            groups.append(([], set()))
            group = groups[-1][0]
        group.append(mistake)
        next(used for other, used in groups if other is group).update(touched)
    return [group for group, _ in groups]


@pytest.fixture(scope="session")
def graded(tmp_path_factory):
    """{(seed, assignment, student): (due, Graded)} of all rounds, and the courses {seed: folder}."""
    everything, courses = {}, {}
    for seed in SEEDS:
        where = courses[seed] = tmp_path_factory.mktemp("class") / f"course-{seed}"
        course.set_up(where, Variant.draw(seed), ASSIGNMENTS)
        due = {}
        for name in ASSIGNMENTS:
            hand_in(where, name, seed, due)
        workers = int(os.environ.get("GRADING_WORKERS", "2"))
        for result in course.grade_class(where, workers=workers, seconds=CELL_SECONDS, feedback=False):
            everything[seed, result.assignment, result.student] = due[result.assignment, result.student], result
    return everything, courses


def hand_in(where, name, seed, due):
    """All submissions of one assignment; notes in ``due`` {(assignment, student): {grade id: marks}}."""
    full, references = rehearsal.full_marks(where, name), rehearsal.references(where, name)
    rehearsal.write(where, "reference", name, references)
    rehearsal.write(where, "blank", name, {})
    due[name, "reference"], due[name, "blank"] = full, dict.fromkeys(full, 0)
    for k, group in enumerate(packed(rehearsal.wrong_solutions(name))):
        answers, lost = dict(references), {}
        for mistake in group:
            answers |= mistake["cells"]
            lost |= dict.fromkeys(mistake["loses"], 0)
        rehearsal.write(where, f"mistakes-{k}", name, answers)
        due[name, f"mistakes-{k}"] = full | lost

    exercises = [question.answer for question in rehearsal.questions(where, name) if question.tests]
    first, turn = name == ASSIGNMENTS[0], seed + ASSIGNMENTS.index(name)

    def attack(student, attacks):
        due[name, student] = rehearsal.cheat(where, student, name, attacks)

    attacked = exercises[:-1]  # the last exercise is solved honestly
    for k in range(0, len(ANSWERS), len(attacked)):
        attack(f"cheats-{k}", dict(zip(attacked, (ANSWERS * 2)[k:], strict=False)))
    for k, cheat in enumerate(SLOW):
        if first or (k + turn) % len(SLOW) == 0:
            attack(f"slow-{k}", {exercises[k]: cheat})
    for k, cheat in enumerate(ANSWERS):
        if first and (k + turn) % 2:
            attack(f"alone-{k}", {exercises[k % len(exercises)]: cheat})
    for k, cheat in enumerate(WHOLE):
        if first or (k + turn) % len(ASSIGNMENTS) == 0:
            attack(f"whole-{k}", dict.fromkeys(exercises if "text" in cheat or turn % 2 else attacked, cheat))


def marks_of(graded, seed, name, kind):
    """(student, due, got, remarks) of the submissions of one kind."""
    everything, _ = graded
    submissions = [
        (student, due, {question: result.marks.get(question, (None,))[0] for question in due}, result.remarks)
        for (s, n, student), (due, result) in everything.items()
        if (s, n) == (seed, name) and student.startswith(kind)
    ]
    assert submissions
    return submissions


@pytest.mark.parametrize(("seed", "name"), ALL)
def test_the_reference_gets_full_marks(graded, seed, name):
    [(_, due, got, remarks)] = marks_of(graded, seed, name, "reference")
    assert got == due
    assert remarks == ()
    _, result = graded[0][seed, name, "reference"]
    assert result.points == 100
    assert result.total == 100 - sum(result.marks[question][1] for question in result.by_hand)


@pytest.mark.parametrize(("seed", "name"), ALL)
def test_the_blank_release_gets_nothing(graded, seed, name):
    [(_, due, got, remarks)] = marks_of(graded, seed, name, "blank")
    assert set(got.values()) == {0} == set(due.values())
    assert remarks == ()
    _, result = graded[0][seed, name, "blank"]
    assert (result.total, result.by_hand) == (0, ())


@pytest.mark.parametrize(("seed", "name"), ALL)
def test_wrong_solutions_lose_exactly_what_they_should(graded, seed, name):
    mistakes = rehearsal.wrong_solutions(name)
    assert len(mistakes) >= 6
    assert any(all(cell.endswith("-hidden") for cell in mistake["loses"]) for mistake in mistakes)
    assert all(mistake["loses"] for mistake in mistakes)
    for student, due, got, _ in marks_of(graded, seed, name, "mistakes"):
        names = [mistake["name"] for mistake in packed(mistakes)[int(student.partition("-")[2])]]
        assert got == due, names


@pytest.mark.parametrize(("seed", "name"), ALL)
def test_cheats_gain_nothing_and_break_nothing(graded, seed, name):
    for kind in ("cheats", "slow", "whole") + ("alone",) * (name == ASSIGNMENTS[0]):
        for student, due, got, remarks in marks_of(graded, seed, name, kind):
            assert got == due, (student, remarks)


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_no_test_of_a_blank_release_passes(graded, name):
    from nbgrader.validator import Validator

    path = graded[1][SEEDS[0]] / "release" / name / f"{name}.ipynb"
    assert Validator(invert=True).validate(str(path)) == {}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_csv_files_hold_the_marks(graded, seed):
    everything, courses = graded
    with (courses[seed] / "marks.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert {student for s, _, student in everything if s == seed} == set(rows)
    for (s, name, student), (_, result) in everything.items():
        if s == seed:
            assert float(rows[student][name]) == result.total
    assert float(rows["reference"]["total"]) == sum(float(rows["reference"][name]) for name in ASSIGNMENTS)
    with (courses[seed] / "marks_by_part.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            result = everything[seed, row["assignment"], row["student"]][1]
            assert result.marks[row["part"]] == (float(row["marks"]), float(row["points"]))
            assert (row["marked by hand"] == "to do") == (row["part"] in result.by_hand)


def test_feedback_tells_what_was_not_run_and_runs_no_script(graded):
    where, name = graded[1][SEEDS[0]], ASSIGNMENTS[0]
    page = course.write_feedback(where, "blank", name).read_text(encoding="utf-8")
    assert "this part is not written yet" in page
    page = course.write_feedback(where, "cheats-0", name).read_text(encoding="utf-8")
    assert "About this submission" in page
    assert "cannot be imported" in page
    script = {
        "cell_type": "markdown",
        "id": "mine",
        "metadata": {},
        "source": "<script>alert(1)</script><img onerror=x>",
    }
    rehearsal.write(where, "script", name, {}, lambda notebook: notebook["cells"].insert(3, script))
    course.grade_class(where, [name], 1, feedback=False, students=["script"])
    page = course.write_feedback(where, "script", name).read_text(encoding="utf-8")
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<img onerror" not in page


def test_cells_that_end_or_block_python_cost_their_own_marks_alone(tmp_path):
    """The same without the policy: kernels that die or hang are replaced, and what ran before runs again."""
    import nbformat
    from reformer_lab.classroom.autograde import SturdyExecute

    test = {"nbgrader": {"grade": True, "grade_id": "t", "points": 1, "locked": True, "solution": False}}
    answer = {"nbgrader": {"grade": False, "grade_id": "a", "locked": False, "solution": True}}
    cells = [
        ("x = 1", answer),
        ("def dies():\n    import os\n    os._exit(1)", answer),
        ("dies()", test),
        ("assert x == 1", test),
        ("def hangs():\n    import itertools\n    sum(itertools.repeat(0))", answer),
        ("hangs()", test),
        ("x = 2; hangs()", test),
        ("import os; os.kill(os.getpid(), 9)", answer),
        ("assert x == 1", test),
        ("import sys; sys.exit(0)", test),
        ("b = bytearray(2**40)", test),
        ("import sys; sys.stderr.write('careful')", test),
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source, metadata=json.loads(json.dumps(marks))) for source, marks in cells]
    )
    SturdyExecute(timeout=4).preprocess(notebook, {"metadata": {"path": str(tmp_path)}})
    failed = [any(output.output_type == "error" for output in cell.outputs) for cell in notebook.cells]
    assert failed == [False, False, True, False, False, True, True, True, False, True, True, False]
    assert "did not end" in notebook.cells[6].outputs[0].evalue
