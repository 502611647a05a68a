"""Pictures of decoding: the rings bucket by bucket, the keys kept at each length, and seconds per token."""

import numpy as np
from matplotlib.patches import Rectangle

from reformer_lab.plots.drawing import Picture, bucket_colours, readable_on, styled

INK, PALE = "#333333", "#F3F3F3"


@styled
def rings(members, counts, buckets, position, hidden=None):
    """The rings of one head, a panel per round, a row per bucket; outlined: those that the next query reads.

    members: int (n_hashes, n_buckets, chunk_length), positions, −1 = still empty; counts: int (n_hashes, n_buckets),
    tokens in each bucket so far; buckets: int (n_hashes,), of the next query; position: of the next query. hidden: bool
    like members, True where an earlier round holds the same key (None: nowhere).
    """
    members, counts, buckets = np.asarray(members), np.asarray(counts), np.asarray(buckets)
    if members.ndim != 3 or counts.shape != members.shape[:2] or buckets.shape != members.shape[:1]:
        raise ValueError(
            "members (n_hashes, n_buckets, chunk_length), counts (n_hashes, n_buckets) and buckets (n_hashes,) must "
            "agree, got  {members.shape}, {counts.shape} and {buckets.shape}"
        )
    hidden = np.zeros(members.shape, bool) if hidden is None else np.asarray(hidden)
    n_hashes, n_buckets, chunk_length = members.shape
    picture = Picture(max(5.0, 1.0 + n_hashes * (0.9 + 0.42 * chunk_length)), 1.2 + 0.36 * n_buckets)
    axes = np.atleast_1d(picture.subplots(1, n_hashes))
    colours = bucket_colours(n_buckets)
    for h, ax in enumerate(axes):
        for b in range(n_buckets):
            for slot, i in enumerate(members[h, b]):
                _draw_entry(ax, slot, b, int(i), colours[b], bool(hidden[h, b, slot]))
            ax.plot(counts[h, b] % chunk_length + 0.5, b + 0.94, marker="^", color=INK, markersize=4, linestyle="")
        ax.add_patch(Rectangle((0, buckets[h]), chunk_length, 1, fill=False, edgecolor=INK, linewidth=2.5))
        ax.set(xlim=(-0.05, chunk_length + 0.05), ylim=(n_buckets + 0.05, -0.05), xticks=[], xlabel="index in the ring")
        ax.set(yticks=np.arange(n_buckets) + 0.5, yticklabels=range(n_buckets), title=f"round {h + 1}")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    axes[0].set_ylabel("bucket")
    read = members[np.arange(n_hashes), buckets]
    seen = read[(read >= 0) & ~hidden[np.arange(n_hashes), buckets]]
    return picture.describe(
        "Tables of positions, one per round: a row per bucket, a cell per entry of its ring; a triangle marks the "
        "entry that the bucket's next member overwrites. Outlined: the rings that the next token's query reads; struck "
        "out: keys that an earlier round holds already. Nothing else of the past is needed.",
        **{
            "next position": position,
            "its buckets": ", ".join(map(str, buckets)),
            "keys it sees": len(seen),
            "these keys": ", ".join(map(str, np.sort(seen))) or "none, so it sees itself",
            "tokens read": int(counts[0].sum()),
            "entries of all rings": members.size,
        },
    )


def _draw_entry(ax, slot, bucket, position, colour, hidden):
    ax.add_patch(Rectangle((slot, bucket), 1, 1, facecolor=PALE if position < 0 else colour, edgecolor="white"))
    if position < 0:
        return
    ink = readable_on(colour)
    ax.text(slot + 0.5, bucket + 0.46, str(position), ha="center", va="center", fontsize=9, color=ink)
    if hidden:
        ax.plot([slot + 0.15, slot + 0.85], [bucket + 0.46] * 2, color=ink, linewidth=1.5, marker="", linestyle="-")


@styled
def kept_by_length(lengths, series, unit="keys kept"):
    """Keys that a decoder keeps (y) against tokens read (x), both logarithmic. series: {name: a number per length}."""
    lengths = np.asarray(lengths)
    for name, values in series.items():
        if np.shape(values) != lengths.shape:
            raise ValueError(f"series must have {len(lengths)} numbers each, {name!r} has shape {np.shape(values)}")
    picture = Picture(7, 3.4)
    ax = picture.add_subplot()
    for name, values in series.items():
        ax.plot(lengths, values, label=name)
    ax.set(xscale="log", yscale="log", xlabel="tokens read", ylabel=unit)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return picture.describe(
        f"Line chart, both axes logarithmic: {unit} (y) against tokens read (x). A cache of everything grows with the "
        "text; local windows and rings are full after a while and stay as they are.",
        **{name: ", ".join(f"{v:,}" for v in values) for name, values in series.items()},
    )


@styled
def seconds_by_length(lengths, series):
    """Seconds per token (y) against tokens read (x), measured. series: {name: seconds for each length}."""
    lengths = np.asarray(lengths)
    picture = Picture(7, 3.4)
    ax = picture.add_subplot()
    for name, values in series.items():
        if np.shape(values) != lengths.shape:
            raise ValueError(f"series must have {len(lengths)} numbers each, {name!r} has shape {np.shape(values)}")
        ax.plot(lengths, np.asarray(values) * 1e3, label=name)
    ax.set(xlabel="tokens read before", ylabel="milliseconds per token", yscale="log")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return picture.describe(
        "Line chart: milliseconds for one more token (y, logarithmic) against the tokens before it (x), measured on "
        "this machine. From the cache a token costs the same at any position; recomputing costs more with each token.",
        **{name: ", ".join(f"{v * 1e3:.3g} ms" for v in values) for name, values in series.items()},
    )
