"""Where two large results differ, as a picture."""

import numpy as np

from reformer_lab.plots.drawing import Picture, styled


@styled
def differences(yours, expected, wrong):
    """A map of the entries of two arrays of one shape: right ones light grey, wrong ones black.

    yours, expected: arrays of one shape; all axes but the last are laid one under the other. wrong: booleans.
    """
    wrong = np.atleast_2d(np.asarray(wrong))
    wrong = wrong.reshape(-1, wrong.shape[-1])  # (rows, last axis)
    picture = Picture(width=8, height=max(1.6, min(5.0, 0.9 + 0.12 * len(wrong))))
    ax = picture.add_subplot()
    ax.imshow(wrong, cmap="Greys", vmin=-0.15, vmax=1, aspect="auto", interpolation="nearest")
    ax.set(xlabel="last index", ylabel="row (all other indices)")
    rows = np.flatnonzero(wrong.any(axis=1))
    columns = np.flatnonzero(wrong.any(axis=0))
    caption = f"""Map of the result, {np.asarray(yours).shape} laid out in {len(wrong)} rows: wrong entries black, right
        ones light grey. Stripes tell which index is at fault."""
    return picture.describe(
        caption,
        wrong=int(wrong.sum()),
        of=int(wrong.size),
        rows=f"{rows[0]} to {rows[-1]}" if len(rows) else "none",
        columns=f"{columns[0]} to {columns[-1]}" if len(columns) else "none",
    )
