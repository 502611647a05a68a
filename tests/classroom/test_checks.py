"""Checks: what students read when something is wrong, recorded cases, and results that try to lie."""

import io
from contextlib import redirect_stdout

import numpy as np
import pytest
from reformer_lab.classroom import cases, checks
from reformer_lab.classroom.answers import answer
from reformer_lab.classroom.exercise import Exercise
from reformer_lab.classroom.exercises import exercise, names
from reformer_lab.classroom.pictures import differences
from reformer_lab.classroom.variants import TOPICS, Variant
from reformer_lab.plots.drawing import Picture

DRAWN = Variant.draw(1).only("A1")
GRADED = [name for assignment in TOPICS for name in names(assignment) if exercise(name).graded]


def right(name, variant=DRAWN):
    return answer(name).reference(variant)


def complaint(name, fn, variant=DRAWN):
    with pytest.raises(AssertionError) as error:
        checks.check(name, fn, variant)
    return str(error.value)


@pytest.mark.parametrize("name", GRADED)
@pytest.mark.parametrize("variant", [Variant(), Variant.draw(1), Variant.draw(2)], ids=["open", "1", "2"])
def test_the_reference_passes_with_a_line_each(name, variant):
    variant = variant.only(name.partition(".")[0])
    with redirect_stdout(io.StringIO()) as out:
        checks.check(name, right(name, variant), variant)
        checks.written(name, right(name, variant), variant)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith(f"✓ {name}: ")
    assert ("; check_" in lines[0]) == (variant.open and answer(name).component_check is not None)
    assert lines[1:] == [f"{name}: written. Further tests run when this is graded."]


def test_wrong_entries_stand_beside_the_expected_ones_with_stars():
    message = complaint("A1.meeting", lambda b: right("A1.meeting")(b) * (np.arange(b.shape[1]) != 2))
    assert message.startswith("A1.meeting, case 1 of 3: 2 of 16 entries of `first` are wrong; the first is first[1, 2]")
    lines = message.splitlines()
    table = lines[lines.index("yours (* wrong)       expected") + 1 :][:4]
    assert table[1].split() == ["[1]", "1", "0", "0*", "-1", "1", "0", "-1", "-1"]
    assert len({line.index("   ", 18) for line in table}) == 1, "columns are not aligned"
    assert 'To have them again:  (buckets,) = inputs("A1.meeting", 1, VARIANT)' in message
    assert "buckets = int64 (2, 4)  [[0, 1, 0, 2], [1, 1, 2, 2]]" in message


@pytest.mark.parametrize(
    ("name", "fn", "phrase"),
    [
        ("A1.hash", lambda x, r: None, "must be a NumPy array or number, got None. Is a `return` missing?"),
        ("A1.hash", lambda x, r: [[0, 1]], "got list. np.array(…) makes an array of it."),
        ("A1.hash", lambda x, r: right("A1.hash")(x, r).T, "`buckets` has shape (4, 1), expected (1, 4)."),
        ("A1.hash", lambda x, r: right("A1.hash")(x, r) * 1.0, "`buckets` holds floats (float64), expected integers."),
        ("A1.hash", lambda x, r: x[:, 9], "your function raised IndexError: index 9 is out of bounds"),
        ("A1.measure", lambda t, a, b: t, "expected 2 results (fraction, distance) as a tuple, got a ndarray."),
        ("A1.measure", lambda t, a, b: (t, t, t), "expected 2 results (fraction, distance) as a tuple, got 3 things."),
        ("A1.measure", lambda t, a, b: (right("A1.measure")(t, a, b)[0], t), "1 of 1 entries of `distance` is wrong"),
        ("A1.rounds", lambda t, m: 77, "`n` is 77, expected 3."),
        ("A1.angle", lambda x, y: right("A1.angle")(x, y) * (1 + 1e-6), "yours 1.570798, expected 1.570796."),
        ("A1.angle", lambda x, y: np.full(len(x), np.nan), "yours nan, expected 1.571."),
        (
            "A1.factors",
            lambda s, f: right("A1.factors")(s, f) * 0,
            "(scores 0.1 -0.4 0.2 0.9 | -1.3 0.8 0 -0.2 0.5 0.3)",
        ),
        ("A1.meeting", lambda b: b.sort() or b, "your function changed its argument `buckets`. Work on a copy of it."),
    ],
)
def test_messages_say_what_is_wrong(name, fn, phrase):
    assert phrase in complaint(name, fn)


def test_the_line_at_fault_is_named():
    def hash_vectors(x, rotations):
        return x @ rotations @ np.ones(77)

    assert "line " in complaint("A1.hash", hash_vectors)
    assert "return x @ rotations @ np.ones(77)" in complaint("A1.hash", hash_vectors)


def test_a_stub_is_called_a_stub():
    def stub(*args):
        raise NotImplementedError

    assert "this part is not written yet" in complaint("A1.hash", stub)
    for name in names("A1"):
        with pytest.raises(AssertionError, match="not written yet"):
            checks.written(name, stub, DRAWN)
        checks.written(name, lambda *args: "wrong, but written", DRAWN)


def test_what_does_not_agree_with_the_rooms_check_is_told_in_open_mode():
    cheat = {x.tobytes(): expected[0] for (x, _), expected in cases.compute("A1.hash", Variant(), False)[2:]}

    def fn(x, r):
        return cheat[x.tobytes()] if x.tobytes() in cheat else right("A1.hash", Variant())(x, r) % 3

    with pytest.raises(AssertionError):
        checks.check("A1.hash", fn, Variant())
    with redirect_stdout(io.StringIO()) as out:
        checks.check("A1.hash", right("A1.hash", Variant()), Variant())
    assert "check_collision_probability: 9 angles" in out.getvalue()


class Liar(np.ndarray):
    """An array that is equal to everything."""

    def __ne__(self, other):
        return np.zeros(self.shape, dtype=bool)


@pytest.mark.parametrize("kind", [Liar, np.matrix, np.ma.MaskedArray])
def test_subclasses_are_refused(kind):
    message = complaint("A1.hash", lambda x, r: right("A1.hash")(x, r).view(kind))
    assert f"must be a NumPy array or number, got {kind.__name__}" in message


def test_what_a_student_does_to_inputs_changes_no_check():
    for number in range(1, 11):
        for array in checks.inputs("A1.hash", number, DRAWN):
            array[:] = 0
    assert "entries of `buckets` are wrong" in complaint("A1.hash", lambda x, r: 0 * right("A1.hash")(x, r))
    with redirect_stdout(io.StringIO()):
        checks.check("A1.hash", right("A1.hash"), DRAWN)


def test_to_know_the_visible_results_by_heart_is_no_use():
    known = {tuple(a.tobytes() for a in args): out[0] for args, out in cases.visible("A1.hash", DRAWN)}
    message = complaint("A1.hash", lambda x, r: known.get((x.tobytes(), r.tobytes()), np.zeros((len(r), len(x)), int)))
    assert message.startswith("A1.hash, further case 9: ")
    assert 'x, rotations = inputs("A1.hash", 9, VARIANT)' in message


def test_entries_of_a_mask_are_told_in_words():
    drawn = Variant.draw(1).only("A2")
    message = complaint("A2.visible", lambda b, c, w: ~right("A2.visible", drawn)(b, c, w), drawn)
    (buckets, chunks, windows), _ = cases.visible("A2.visible", drawn)[0]
    c, k, w = next(at for at in np.ndindex(*chunks.shape, windows.shape[1]) if windows[at[0], at[2]] >= 0)
    query = f"query {chunks[c, k]} of bucket {buckets[chunks[c, k]]}" if chunks[c, k] >= 0 else "query padding"
    assert f"{query}, key {windows[c, w]} of bucket {buckets[windows[c, w]]}" in message


def test_large_results_give_a_list_and_a_picture():
    task = Exercise("A1.big", ("x",), rtol=1e-9)
    expected = np.arange(600.0).reshape(20, 30)
    yours = expected.copy()
    yours[3:5, 10:] += 1
    message = checks.explain(task, "result", yours, expected)
    assert message.startswith(
        "40 of 600 entries of `result` are wrong; the first is result[3, 10]: yours 101, expected 100"
    )
    assert "… and 32 more" in message
    assert len(message.splitlines()) == 12
    assert max(map(len, message.splitlines())) < 100
    picture = differences(yours, expected, task.wrong(yours, expected))
    assert isinstance(picture, Picture)
    assert picture.numbers == {"wrong": 40, "of": 600, "rows": "3 to 4", "columns": "10 to 29"}
    assert checks.explain(task, "result", expected * (1 + 1e-12), expected) is None


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 2, 3)])
@pytest.mark.parametrize("dtype", [bool, int, float])
def test_tables_of_every_shape_show_as_many_stars_as_there_are_wrong_entries(shape, dtype):
    task, rng = Exercise("A1.table", ("x",)), np.random.default_rng(0)
    expected = rng.integers(0, 2, shape).astype(dtype)
    wrong = rng.random(shape) < 0.6
    if not np.any(wrong):
        wrong = np.ones(shape, dtype=bool)
    yours = np.where(wrong, 1 - expected, expected).astype(dtype)
    message = checks.explain(task, "result", np.asarray(yours), np.asarray(expected))
    assert message.count("*") == (int(np.sum(wrong)) + 1 if shape else 0)


def test_inputs_gives_a_case_back_as_a_copy():
    x, _ = checks.inputs("A1.hash", 1, DRAWN)
    x[:] = 0
    assert checks.inputs("A1.hash", 1, DRAWN)[0].any()
    with pytest.raises(ValueError, match="number must be from 1 to 10, got 11"):
        checks.inputs("A1.hash", 11, DRAWN)


@pytest.mark.parametrize("assignment", TOPICS)
def test_recorded_cases_are_the_computed_ones(assignment, tmp_path, monkeypatch):
    variant = Variant.draw(5).only(assignment)
    quick = {"A5.study": [((), (np.array('{"quick": "in place of seconds of counting"}'),))]}
    computed = {name: quick.get(name) or cases.compute(name, variant, hidden=False) for name in names(assignment)}
    monkeypatch.setattr(cases, "compute", lambda name, variant, hidden: computed[name])
    cases.record(assignment, variant, tmp_path / "one")
    cases.record(assignment, variant, tmp_path / "two")
    file = f"{assignment}.npz"
    assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    monkeypatch.setattr(cases, "answers_installed", lambda: False)
    for name, tried in computed.items():
        stored = cases.visible(name, variant, tmp_path / "one")
        assert len(stored) == len(tried)
        for got, want in zip(stored, tried, strict=True):
            assert same(got, want), name
    with pytest.raises(ValueError, match="belongs to another variant"):
        cases.visible(name, Variant.draw(6).only(assignment), tmp_path / "one")
    with pytest.raises(FileNotFoundError, match="keep the folder `cases` beside the notebook"):
        cases.visible(name, variant, tmp_path / "three")


def same(got, want):
    if isinstance(want, (tuple, list)):
        return isinstance(got, tuple) and len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, (np.ndarray, np.generic)):
        return got.dtype == want.dtype and np.array_equal(got, want)
    return type(got) is type(want) and got == want


def test_visible_cases_are_few_and_small():
    for name in GRADED:
        tried = cases.visible(name, Variant().only(name[:2]))
        assert 1 <= len(tried) <= 8, name
        assert len(exercise(name).arguments) == len(tried[0][0]), name


def test_an_edited_file_of_cases_gains_nothing_where_the_answers_are(tmp_path, monkeypatch):
    cases.record("A1", DRAWN, tmp_path / "cases")
    with np.load(tmp_path / "cases" / "A1.npz") as stored:
        zeros = {key: value if key == "index" else np.zeros_like(value) for key, value in stored.items()}
    np.savez(tmp_path / "cases" / "A1.npz", **zeros)
    monkeypatch.chdir(tmp_path)
    assert "entries of `buckets` are wrong" in complaint("A1.hash", lambda x, r: 0 * right("A1.hash")(x, r))
