"""Images: IDX files whole and damaged, letters from outlines, tokens, and the baselines."""

import gzip
import io
import lzma
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from reformer_lab.data import images


def idx(array, kind=8, shape=None):
    """The bytes of an IDX file."""
    shape = array.shape if shape is None else shape
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + array.tobytes()


def some(n=3, height=5, width=4, levels=256, seed=0):
    return np.random.default_rng(seed).integers(0, levels, (n, height, width)).astype(np.uint8)


# IDX files


@pytest.mark.parametrize("shape", [(3, 5, 4), (7,), (2, 3), (0, 28, 28), (1, 2, 3, 4)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_files_come_back_as_they_were(tmp_path, shape, pack):
    array = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    (tmp_path / "f").write_bytes(pack(idx(array)))
    got = images.read_idx(tmp_path / "f")
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, array)


WHOLE = idx(some())
DAMAGED = {
    "empty": (b"", "not an IDX file"),
    "other beginning": (b"\x01" + WHOLE[1:], "not an IDX file"),
    "png": (b"\x89PNG\r\n\x1a\n" + b"x" * 50, "not an IDX file"),
    "floats": (idx(some(), kind=13), "unsigned bytes"),
    "no dimensions": (b"\0\0\x08\0", "cut off"),
    "header cut off": (WHOLE[:11], "cut off"),
    "values missing": (WHOLE[:-1], "60 values.*got 59"),
    "values too many": (WHOLE + b"x", "60 values.*got 61"),
    "absurd size": (idx(some(), shape=(2**32 - 1,) * 3), "values, as its header says"),
    "gzip cut off": (gzip.compress(WHOLE)[:-9], "cannot be read"),
    "gzip damaged": (gzip.compress(WHOLE)[:-8] + b"\0" * 8, "cannot be read"),
    "gzip of nonsense": (b"\x1f\x8b\x08" + b"\xff" * 40, "cannot be read"),
    "gzip of a text": (gzip.compress(b"no images at all"), "not an IDX file"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_idx_files_are_refused_in_words(tmp_path, damage):
    content, message = DAMAGED[damage]
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        images.read_idx(tmp_path / "f")


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_file_leads_to_anything_but_a_value_error(tmp_path_factory, data):
    base = data.draw(st.sampled_from([WHOLE, gzip.compress(WHOLE, mtime=0)]))
    place, byte = data.draw(st.integers(0, len(base) - 1)), data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("idx") / "f"
    path.write_bytes(base[:place] + bytes([byte]) + base[place + 1 : data.draw(st.integers(0, len(base)))])
    message = str(path)
    try:
        assert images.read_idx(path).dtype == np.uint8
    except ValueError as error:
        message = str(error)
    assert str(path) in message


def test_missing_files_folders_and_bombs_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="does not exist"):
        images.read_idx(tmp_path / "nothing")
    with pytest.raises(ValueError, match="a folder or a device"):
        images.read_idx(tmp_path)
    with pytest.raises(ValueError, match="a folder or a device"):
        images.read_idx("/dev/zero")
    monkeypatch.setattr(images, "MOST_BYTES", 1000)
    (tmp_path / "bomb").write_bytes(gzip.compress(b"\0" * 100_000))
    with pytest.raises(ValueError, match="at most 1,000 bytes"):
        images.read_idx(tmp_path / "bomb")
    (tmp_path / "long").write_bytes(b"\0" * 1001)
    with pytest.raises(ValueError, match="at most 1,000 bytes"):
        images.read_idx(tmp_path / "long")


def folder_of(path, train, held_out):
    (path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(train)))
    (path / "t10k-images-idx3-ubyte").write_bytes(idx(held_out))
    return path


def test_folder_in_mnists_form(tmp_path):
    train, held_out = some(4), some(2, seed=1)
    got = images.read_folder(folder_of(tmp_path, train, held_out))
    np.testing.assert_array_equal(got["train"], train)
    np.testing.assert_array_equal(got["held_out"], held_out)


def test_folders_of_another_form_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold the file train-images-idx3-ubyte"):
        images.read_folder(tmp_path)
    with pytest.raises(ValueError, match="images of one size"):
        images.read_folder(folder_of(tmp_path, some(), some(width=9)))
    with pytest.raises(ValueError, match="must hold images"):
        images.read_folder(folder_of(tmp_path, some(), np.zeros(5, np.uint8)))


# Letters


def test_letters_are_a_function_of_their_arguments():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - must not change
    a = images.letters(6, 3, 4)
    assert a.shape == (6, 28, 28)
    assert a.dtype == np.uint8
    np.testing.assert_array_equal(a, images.letters(6, 3, 4))
    np.testing.assert_array_equal(a[:2], images.letters(2, 3, 4))
    for other in (images.letters(6, 3, 5), images.letters(6, 4, 4), images.letters(6, 3, 4, "held_out")):
        assert not np.array_equal(a, other)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_letters_are_whole_and_of_many_kinds():
    many = images.letters(300, 0, 0)
    assert (many.reshape(300, -1).max(1) > 128).all()
    ink = (many / 255.0).sum((1, 2))
    assert ink.min() > 10
    assert ink.max() < 400
    assert many[:, 0].max() < 255 or many[:, -1].max() < 255  # nothing is cut off at both edges
    assert len({image.tobytes() for image in many}) == 300


def test_held_out_letters_are_in_no_training_face():
    train, held_out = set(images.letter_pairs("train")), set(images.letter_pairs("held_out"))
    assert not train & held_out
    assert len(train | held_out) == 62 * 21
    assert len(held_out) == 62 * 21 // 10
    assert {face for _, face in held_out} == set(images.FACES)
    assert {character for character, _ in train} == set(images.CHARACTERS)


def test_every_letter_of_every_face_has_an_outline():
    blank = {
        pair for part in images.SUBSETS for pair in images.letter_pairs(part) if len(images._outline(*pair)[0]) < 4
    }
    assert not blank


@given(left=st.floats(0, 27), top=st.floats(0, 27), width=st.floats(0.1, 28), height=st.floats(0.1, 28))
@settings(max_examples=50, deadline=None)
def test_coverage_of_a_rectangle_is_its_area(left, top, width, height):
    right, bottom = min(left + width, 28.0), min(top + height, 28.0)
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    got = images.coverage(corners, (4,))
    tolerance = (right - left) * 0.25 + 1e-9  # lines: a quarter
    assert got.sum() == pytest.approx((right - left) * (bottom - top), abs=tolerance)
    np.testing.assert_allclose(got, images.coverage(corners[::-1], (4,)), atol=1e-12)  # either way round
    along = np.clip(np.arange(1, 29) - left, 0, 1) - np.clip(np.arange(1, 29) - right, 0, 1)
    rows = got.max(1) > 0
    np.testing.assert_allclose(
        got[rows] / got[rows].max(1, keepdims=True), np.tile(along / along.max(), (rows.sum(), 1))
    )


def test_a_loop_the_other_way_round_is_a_hole():
    outer = np.array([[4, 4], [24, 4], [24, 24], [4, 24]], float)
    hole = np.array([[10, 10], [10, 18], [18, 18], [18, 10]], float)
    got = images.coverage(np.concatenate([outer, hole]), (4, 8))
    assert got.sum() == pytest.approx(20 * 20 - 8 * 8)
    assert got[14, 14] == 0
    assert got[5, 5] == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((0, 0, 0), ValueError), ((1, -1, 0), ValueError), ((1, 0, -1), ValueError), ((1.0, 0, 0), TypeError),
     ((1, 0, 0, "test"), ValueError)],
)  # fmt: skip
def test_letters_refuse(arguments, error):
    with pytest.raises(error):
        images.letters(*arguments)


# Grey levels and tokens


@pytest.mark.parametrize("levels", [2, 3, 8, 16, 255, 256])
def test_grey_levels_are_equal_steps(levels):
    greys = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    got = images.grey_levels(greys, levels)
    assert got.min() == 0
    assert got.max() == levels - 1
    assert np.ptp(np.bincount(got.ravel(), minlength=levels)) <= 1
    assert (np.diff(got.ravel().astype(int)) >= 0).all()


def test_each_token_is_the_pixel_before_its_target():
    tokens, targets = images.to_tokens(some(2))
    assert tokens.dtype == targets.dtype == np.int64
    np.testing.assert_array_equal(targets, some(2).reshape(2, -1))
    np.testing.assert_array_equal(tokens[:, 1:], targets[:, :-1])
    assert (tokens[:, 0] == 0).all()


@pytest.mark.parametrize("function", [images.to_tokens, images.compressed_bits, images.split])
@pytest.mark.parametrize(
    ("value", "error"),
    [([[[1]]], TypeError), (np.zeros((1, 2, 2)), TypeError), (np.zeros((2, 2), np.uint8), ValueError),
     (np.zeros((0, 2, 2), np.uint8), ValueError)],
)  # fmt: skip
def test_what_is_no_images_is_refused(function, value, error):
    with pytest.raises(error, match="images must"):
        function(value)


def test_split_keeps_the_last_images():
    train, held_out = images.split(some(10), 0.3)
    assert (len(train), len(held_out)) == (7, 3)
    np.testing.assert_array_equal(np.concatenate([train, held_out]), some(10))
    for wrong in (0.0, 1.0):
        with pytest.raises(ValueError, match="held_out must be"):
            images.split(some(10), wrong)


# Baselines


def neighbours(seed=0, levels=3):
    return images.Neighbours(some(12, 6, 7, levels, seed), levels)


def test_probabilities_of_all_values_sum_to_one():
    table, asked = neighbours(), some(4, 6, 7, 3, seed=5)
    for row, column in ((0, 0), (2, 0), (3, 3), (5, 6)):
        total = 0.0
        for value in range(3):
            changed = asked.copy()
            changed[:, row, column] = value
            total = total + table.probabilities(changed)[:, row, column]
        np.testing.assert_allclose(total, 1.0, rtol=1e-12)


def test_probabilities_look_at_nothing_that_comes_later():
    table, asked = neighbours(), some(2, 6, 7, 3, seed=5)
    changed = asked.copy()
    changed[:, 3, 4:] = (changed[:, 3, 4:] + 1) % 3
    changed[:, 4:] = (changed[:, 4:] + 1) % 3
    before, after = table.probabilities(asked), table.probabilities(changed)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    np.testing.assert_array_equal(before[:, 3, :4], after[:, 3, :4])


def test_counts_are_those_of_the_definition():
    """Against a slow count, with dictionaries, of the same contexts and strengths."""
    train, asked = some(9, 4, 5, 2), some(2, 4, 5, 2, seed=3)
    table = images.Neighbours(train, 2)

    def context(image, row, column, depth):
        padded = np.pad(image, ((2, 0), (2, 2)))
        around = [place for group in table.CONTEXTS[: depth + 1] for place in group]
        return tuple(padded[row + 2 - up, column + 2 + right] for up, right in around)

    want = np.full(asked.shape, 0.5)
    for depth, strength in enumerate(table._strengths):
        seen = {}
        for image in train:
            for row, column in np.ndindex(4, 5):
                key = context(image, row, column, depth)
                seen.setdefault(key, []).append(image[row, column])
        for at in np.ndindex(asked.shape):
            values = seen.get(context(asked[at[0]], *at[1:], depth), [])
            want[at] = (values.count(asked[at]) + strength * want[at]) / (len(values) + strength)
    np.testing.assert_allclose(table.probabilities(asked), want, rtol=1e-12)


def test_the_table_finds_structure_and_not_more():
    letters = images.grey_levels(images.letters(200, 0, 0), 4)
    table, held_out = (images.Neighbours(letters, 4), images.grey_levels(images.letters(40, 0, 1, "held_out"), 4))
    whole, lower = table.bits(held_out)
    assert whole < 0.5
    assert lower < 0.5
    noise = some(200, 8, 8, 4)
    assert images.Neighbours(noise, 4).bits(some(40, 8, 8, 4, seed=1))[0] == pytest.approx(2.0, abs=0.03)


def test_completions_keep_the_upper_half_and_follow_the_probabilities():
    train = np.zeros((40, 4, 4), np.uint8)
    train[:, :, 1::2] = 1  # columns of stripes
    table = images.Neighbours(train, 2)
    given = train[:3].copy()
    given[:, 2:] = 0
    done = table.complete(given, 0)
    np.testing.assert_array_equal(done[:, :2], given[:, :2])
    assert (done == train[:3]).mean() > 0.9
    np.testing.assert_array_equal(done, table.complete(given, 0))
    assert given[:, 2:].max() == 0  # the input is left alone


@pytest.mark.parametrize("method", ["probabilities", "bits", "complete"])
def test_the_table_takes_images_of_its_own_size_alone(method):
    more = {"seed": 0} if method == "complete" else {}
    for wrong in (some(height=6, levels=3), some(width=3, levels=3)):
        with pytest.raises(ValueError, match="images must be of the size"):
            getattr(images.Neighbours(some(9, levels=3), 3), method)(wrong, **more)


@pytest.mark.parametrize(
    ("points", "ends", "error"),
    [(np.eye(3), (3,), ValueError), (np.eye(2), (3,), ValueError), (np.eye(2), (), (ValueError, TypeError)),
     (np.eye(2), (0, 2), ValueError), (np.eye(2) * 1e9, (2,), ValueError), (np.eye(2, dtype=int), (2,), TypeError),
     (np.full((3, 2), np.nan), (3,), ValueError)],
)  # fmt: skip
def test_coverage_refuses(points, ends, error):
    with pytest.raises(error, match=r"points|ends"):
        images.coverage(points, ends)


def test_compressors_count_every_byte():
    column = some(3).reshape(-1, 4)
    png = io.BytesIO()
    Image.fromarray(column).save(png, format="png", optimize=True)
    want = {
        "PNG": len(png.getvalue()), "zlib -9": len(zlib.compress(column.tobytes(), 9)),
        "xz -9": len(lzma.compress(column.tobytes(), preset=9)),
    }  # fmt: skip
    assert images.compressed_bits(some(3)) == {name: 8 * size / 60 for name, size in want.items()}


@pytest.mark.parametrize(
    ("train", "levels", "message"),
    [
        (some(1), 256, "at least 2 images"),
        (some(3), 8, "must lie in 0 … 7"),
        (some(3), 1, "levels"),
        (some(3), 257, "levels"),
    ],
)
def test_tables_of_nothing_are_refused(train, levels, message):
    with pytest.raises(ValueError, match=message):
        images.Neighbours(train, levels)
    with pytest.raises(ValueError, match="of the size"):
        neighbours().probabilities(some(1, 5, 5, 3))
