"""Images as tokens: letters drawn from matplotlib's fonts, or IDX files such as Fashion-MNIST; two baselines.

An image is a uint8 array (height, width), 0 = black; in a few `grey_levels`, each pixel is one
token. Pixels are read row by row, and the token before the first of them is 0: the page is black
around the image.
"""

import functools
import gzip
import io
import lzma
import math
import os
import stat
import zlib
from pathlib import Path

import numpy as np
from reformer_ref._arguments import (
    as_floats,
    as_integers,
    require_choice,
    require_fits,
    require_float,
    require_int,
    short_repr,
)

from reformer_lab.training.files import as_path

SIDE = 28  # pixels of a letter's image, as of Fashion-MNIST's
SUBSETS = ("train", "held_out")
IDX_NAMES = {"train": "train-images-idx3-ubyte", "held_out": "t10k-images-idx3-ubyte"}
MOST_BYTES = 2**31  # of an image file when it is unpacked
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmr10", "cmb10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip
FARTHEST = 1e6  # pixels, of a corner of a letter
SUBROWS = 4  # lines per row of pixels on which the area of a letter is measured; along a line it is exact


# ---- IDX files


def read_idx(path):
    """The array in an IDX file of unsigned bytes, gzipped or not: uint8, of the shape that its header gives.

    IDX (of MNIST): bytes 0, 0, type (8: unsigned byte), number of dimensions, each dimension as 4 bytes, the largest
    first; then the values. ValueError for anything else: another type, a header that is cut off or asks for too much,
    fewer or more values than it says, a damaged gzip file, a missing or unreadable file.
    """
    path = as_path("path", path)
    content = _read(path)
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(f"{path} is not an IDX file: it begins with {content[:4]!r}, not with two zero bytes")
    kind, n_dims = content[2], content[3]
    if kind != 8:
        raise ValueError(f"{path} must hold unsigned bytes (IDX type 8), got type {kind}")
    if n_dims == 0 or len(content) < 4 + 4 * n_dims:
        raise ValueError(f"{path} is cut off: its header promises {n_dims} dimensions in {len(content) - 4} bytes")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", n_dims, 4))
    wanted = math.prod(shape)
    given = len(content) - 4 - 4 * n_dims
    if wanted != given:
        raise ValueError(f"{path} must hold {wanted:,} values, as its header says (shape {shape}), got {given:,}")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_dims).reshape(shape)


def read_folder(folder):
    """{"train": images, "held_out": images}, uint8 (n, height, width) each, of a folder in MNIST's form.

    It holds train-images-idx3-ubyte and t10k-images-idx3-ubyte, each with or without ``.gz``; Debian's package
    dataset-fashion-mnist puts them into /usr/share/datasets/fashion-mnist.
    """
    folder, subsets = as_path("folder", folder), {}
    for subset, name in IDX_NAMES.items():
        paths = [path for path in (folder / name, folder / f"{name}.gz") if os.path.lexists(path)]
        if not paths:
            raise ValueError(f"{folder} must hold the file {name} or {name}.gz (the images of Fashion-MNIST, say)")
        images = read_idx(paths[0])
        if images.ndim != 3 or 0 in images.shape:
            raise ValueError(f"{paths[0]} must hold images (n, height, width), got the shape {images.shape}")
        subsets[subset] = images
    if subsets["train"].shape[1:] != subsets["held_out"].shape[1:]:
        shapes = " and ".join(str(images.shape[1:]) for images in subsets.values())
        raise ValueError(f"both files in {folder} must hold images of one size, got {shapes}")
    return subsets


def _read(path):
    """The bytes of a file, unpacked if it is gzipped; ValueError if it cannot be read or is too long."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"{path} must be a file, it is a folder or a device")
        content = path.read_bytes() if path.stat().st_size <= MOST_BYTES else None
        if content is not None and content[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read: {reason}") from None
    if content is None or len(content) > MOST_BYTES:
        raise ValueError(f"{path} must hold at most {MOST_BYTES:,} bytes")
    return content


# ---- letters


def letters(count, seed, step, subset="train"):
    """``count`` images of letters and digits: uint8 (count, 28, 28), white on black; a function of its arguments.

    Each image is one of 62 characters in one of matplotlib's 21 faces, scaled, turned, slanted and moved at random. A
    tenth of the pairs of character and face is held out: training never shows those letters in that face.
    """
    count = require_int("count", count)
    require_fits(count=count, height=SIDE, width=SIDE)
    seed = require_int("seed", seed, minimum=0)
    step = require_int("step", step, minimum=0)
    pairs = letter_pairs(subset)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, step, SUBSETS.index(subset)])))
    images = np.empty((count, SIDE, SIDE), np.uint8)
    for image in images:
        character, face = pairs[rng.integers(len(pairs))]
        em = rng.uniform(21.0, 26.0)
        angle = rng.uniform(-0.12, 0.12)
        slant = rng.uniform(-0.15, 0.15)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        points, ends = _outline(character, face)
        points = points @ np.array([[1.0, 0.0], [slant, 1.0]]) @ turn.T  # still with the middle of the letter at 0
        em = min(em, (SIDE - 1.0) / np.ptp(points, axis=0).max())
        shift = SIDE / 2 + rng.uniform(-1.0, 1.0, 2) * (SIDE - em * np.ptp(points, axis=0).max() > 3.0)
        image[:] = np.rint(255.0 * coverage(points * (em, -em) + shift, ends))
    return images


def letter_pairs(subset):
    """((character, face), …) of "train" or "held_out": nine tenths and one tenth of all, always the same."""
    return _letter_pairs(require_choice("subset", subset, SUBSETS))


@functools.cache
def _letter_pairs(subset):
    pairs = [(character, face) for character in CHARACTERS for face in FACES]
    order = np.random.Generator(np.random.Philox(8)).permutation(len(pairs))
    border = len(pairs) // 10
    chosen = order[:border] if subset == "held_out" else order[border:]
    return tuple(pairs[i] for i in sorted(chosen))


@functools.cache
def _outline(character, face):
    """Points float64 (n, 2) in em, x to the right and y up, 0 in the middle of line and letter; ends of the loops."""
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
    loops = TextPath((0.0, 0.0), character, size=100.0, prop=FontProperties(fname=file)).to_polygons()
    points = np.concatenate(loops) / 100.0
    points -= ((points[:, 0].min() + points[:, 0].max()) / 2, 0.30)  # between a capital's top and a tail's end
    points.setflags(write=False)
    return points, tuple(np.cumsum([len(loop) for loop in loops]))


def coverage(points, ends):
    """How much of each pixel the loops cover: float64 (28, 28) in [0, 1], row 0 on top.

    points: float (n, 2), x to the right and y down, in pixels; ends: where each closed loop ends in it. Holes are loops
    in the other direction. Areas are exact along each of four lines per row of pixels.
    """
    points = as_floats("points", points)
    ends = as_integers("ends", ends)
    if points.ndim != 2 or points.shape[1] != 2 or not (np.abs(points) < FARTHEST).all():
        raise ValueError(f"points must have shape (n, 2) and lie within {FARTHEST:g} pixels, got {points.shape}")
    starts = np.concatenate([[0], ends[:-1]]) if ends.ndim == 1 and ends.size else ends
    if ends.ndim != 1 or not ends.size or (ends <= starts).any() or ends[-1] != len(points):
        raise ValueError(f"ends must grow from above 0 to the number of points, {len(points)}, got {short_repr(ends)}")
    follows = np.concatenate([np.roll(np.arange(a, b), -1) for a, b in zip(starts, ends, strict=True)])
    (x0, y0), (x1, y1) = points.T, points[follows].T
    lines = (np.arange(SIDE * SUBROWS) + 0.5) / SUBROWS
    line, edge = np.nonzero((y0 <= lines[:, None]) != (y1 <= lines[:, None]))  # where an edge crosses a line
    x = x0[edge] + (lines[line] - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    sign = np.where(y1 > y0, 1.0, -1.0)[edge]
    right = sign[:, None] * np.clip(np.arange(1, SIDE + 1) - x[:, None], 0.0, 1.0)  # of each pixel, right of the edge
    area = np.zeros((SIDE * SUBROWS, SIDE))
    np.add.at(area, line, right)
    return np.clip(np.abs(area), 0.0, 1.0).reshape(SIDE, SUBROWS, SIDE).mean(1)


# ---- images and tokens


def grey_levels(images, levels):
    """Images in ``levels`` (2 … 256) equal steps of grey: uint8 like images, 0 … levels − 1."""
    levels = require_int("levels", levels, 2, 256)
    return (_images(images).astype(np.uint16) * levels // 256).astype(np.uint8)


def to_tokens(images, name="images"):
    """(tokens, targets), int64 (n, height · width) each: token i is the pixel before pixel i (0 before the first)."""
    targets = _images(images, name=name).reshape(len(images), -1).astype(np.int64)
    tokens = np.zeros_like(targets)
    tokens[:, 1:] = targets[:, :-1]
    return tokens, targets


def _images(images, levels=256, name="images"):
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or isinstance(images, np.ma.MaskedArray):
        given = f"an array of {images.dtype}" if type(images) is np.ndarray else type(images).__name__
        raise TypeError(f"{name} must be an array of uint8, got {given}")
    if images.ndim != 3 or 0 in images.shape:
        raise ValueError(f"{name} must have shape (n, height, width) with every size ≥ 1, got {images.shape}")
    if int(images.max()) >= levels:
        raise ValueError(f"{name} must lie in 0 … {levels - 1}, got {int(images.max())}")
    return images


# ---- baselines


class Neighbours:
    """A table of conditional frequencies: a pixel given up to ten earlier pixels around it.

    Contexts grow from the nearest pixels outwards. A context seen n times is weighed against the shorter context with
    strength a: p = (count + a · p_shorter) / (n + a). The strengths are those that predict every fifth training image
    best, counted on the others.
    """

    # (rows up, columns to the right) of the pixels that each context adds
    CONTEXTS = (((0, -1), (1, 0)), ((1, -1), (1, 1)), ((0, -2), (2, 0)), ((1, -2), (1, 2)), ((2, -1), (2, 1)))
    STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

    def __init__(self, train, levels):
        """train: uint8 (n, height, width), n ≥ 2, in ``levels`` levels."""
        self.levels = require_int("levels", levels, 2, 256)
        if len(_images(train, self.levels, "train")) < 2:
            raise ValueError(f"train must hold at least 2 images, got {len(train)}")
        self.size, checking = train.shape[1:], np.arange(len(train)) % 5 == 0
        tables, left, self._strengths = self._counted(train[~checking]), train[checking], []
        p = np.full(left.size, 1.0 / self.levels)
        for key, table in zip(_contexts(left), tables, strict=True):
            n, hits = table.look_up(key.ravel(), left.ravel())
            bits = {a: -np.log2((hits + a * p) / (n + a)).mean() for a in self.STRENGTHS}
            self._strengths.append(min(bits, key=bits.get))
            p = (hits + self._strengths[-1] * p) / (n + self._strengths[-1])
        self._tables = self._counted(train)

    def probabilities(self, images):
        """The probability of every pixel, given those before it: float64 (n, height, width)."""
        keys = [key.ravel() for key in _contexts(self._checked(images))]
        return self._probabilities(keys, images.ravel()).reshape(images.shape)

    def bits(self, images):
        """(bits per pixel of whole images, and of their lower parts given the upper ones)."""
        bits = -np.log2(self.probabilities(images))
        return float(bits.mean()), float(bits[:, self.size[0] // 2 :].mean())

    def complete(self, images, seed):
        """The images with their lower parts drawn pixel by pixel from these probabilities."""
        images, (height, width) = self._checked(images).copy(), self.size
        rng = np.random.Generator(np.random.Philox(require_int("seed", seed, minimum=0)))
        values = np.arange(self.levels, dtype=np.uint8)
        for place in range(height // 2 * width, height * width):
            row, column = divmod(place, width)
            keys = [np.repeat(key[:, row, column], self.levels) for key in _contexts(images)]
            p = self._probabilities(keys, np.tile(values, len(images))).reshape(-1, self.levels)
            images[:, row, column] = (rng.random(len(images))[:, None] > p.cumsum(1)[:, :-1]).sum(1)
        return images

    def _checked(self, images):
        if _images(images, self.levels).shape[1:] != self.size:
            raise ValueError(f"images must be of the size {self.size}, got {images.shape[1:]}")
        return images

    def _counted(self, images):
        return [_Table(key.ravel(), images.ravel()) for key in _contexts(images)]

    def _probabilities(self, keys, values):
        p = np.full(len(values), 1.0 / self.levels)
        for key, table, strength in zip(keys, self._tables, self._strengths, strict=True):
            n, hits = table.look_up(key, values)
            p = (hits + strength * p) / (n + strength)
        return p


class _Table:
    """How often each context was seen, and with which value."""

    def __init__(self, keys, values):
        self.contexts = np.unique(keys, return_counts=True)
        self.pairs = np.unique(_mixed(keys, values), return_counts=True)

    def look_up(self, keys, values):
        """(times that each context was seen, times with this value), float64."""
        return _occurrences(*self.contexts, keys), _occurrences(*self.pairs, _mixed(keys, values))


def _occurrences(known, counts, asked):
    at = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return np.where(known[at] == asked, counts[at], 0).astype(np.float64)


def _contexts(images):
    """For each context, a number for each pixel, equal where the context is equal: uint64 like images."""
    _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (2, 0), (2, 2)))  # black around the image
    key = np.zeros(images.shape, np.uint64)
    for context in Neighbours.CONTEXTS:
        for up, right in context:
            key = _mixed(key, padded[:, 2 - up : 2 - up + height, 2 + right : 2 + right + width])
        yield key


def _mixed(key, new):
    """A 64-bit number for each pair; two of ten million pairs have the same with a probability of 3 in a million."""
    key = (key ^ (new.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(32))


def compressed_bits(images):
    """{name: bits per pixel} of the images, one below the other, by common compressors: PNG, zlib, xz.

    They see only these images, and learn from those above.
    """
    from PIL import Image

    column = _images(images).reshape(-1, images.shape[2])
    png = io.BytesIO()
    Image.fromarray(column).save(png, format="png", optimize=True)
    data = column.tobytes()
    sizes = {
        "PNG": len(png.getvalue()),
        "zlib -9": len(zlib.compress(data, 9)),
        "xz -9": len(lzma.compress(data, preset=9)),
    }
    return {name: 8.0 * size / images.size for name, size in sizes.items()}


def split(images, held_out=0.1):
    """(train, held-out): the last ``held_out`` of the images, a fraction in (0, 1); at least one image each."""
    fraction = require_float("held_out", held_out, minimum=0.0, below=1.0)
    if len(_images(images)) < 2 or fraction == 0.0:
        raise ValueError(f"held_out must be in (0, 1) and images 2 or more, got {held_out} of {len(images)} images")
    border = min(max(len(images) - round(len(images) * fraction), 1), len(images) - 1)
    return images[:border], images[border:]
