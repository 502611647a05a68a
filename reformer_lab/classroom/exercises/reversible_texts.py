"""A4, the reversible block: its definitions under any variant, with a toy each, and its picture."""

import numpy as np

from reformer_lab.plots.drawing import OKABE_ITO, Picture, cell_row, number, styled

BRANCHES = {1: "F", 2: "G"}  # by the stream that they change


def _turns(variant):
    """The streams in the order in which a block changes them."""
    return (1, 2) if variant.coupling == "f_then_g" else (2, 1)


def _line(variant, stream, source):
    """How a block changes a stream, in TeX, such as y_1 = 0.5 x_1 - F(y_2). source: "x" or "y"."""
    carry = "" if variant.carry == 1 else rf"{variant.carry:g}\,"
    sign = "+" if variant.sign > 0 else "-"
    return f"y_{stream} = {carry}x_{stream} {sign} {BRANCHES[stream]}({source}_{3 - stream})"


def _toy(variant):
    """y₁, y₂, ∂ℓ/∂x₁, ∂ℓ/∂x₂ for F(v) = v², G(v) = 3v, x₁ = 2, x₂ = 3, ℓ = y₁ + y₂, by the answers (of instructors)."""
    from reformer_lab.classroom.answers import answer

    forward, backward = (answer(f"A4.{name}").reference(variant) for name in ("forward", "backward"))
    branches = (lambda v: v**2, lambda z, d_out: (2 * z * d_out, 0), lambda v: 3 * v, lambda z, d_out: (3 * d_out, 0))
    y1, y2 = forward(np.array([2.0]), np.array([3.0]), [branches[::2]])
    d_x1, d_x2 = backward(y1, y2, np.ones(1), np.ones(1), *branches)[2:4]
    return [f"{value.item():g}" for value in (y1, y2, d_x1, d_x2)]


def _block(variant):
    first, second = _turns(variant)
    y1, y2, *_ = _toy(variant)
    y = {1: y1, 2: y2}
    unusual = [
        name
        for name, is_so in (
            ("the order of F and G", variant.coupling != "f_then_g"),
            ("the sign", variant.sign != 1),
            ("the factor of the streams", variant.carry != 1),
        )
        if is_so
    ]
    paper = "This is equation 9 of the paper."
    if unusual:
        paper = f"It differs from equation 9 of the paper in {' and '.join(unusual)}."
    return rf"""## Definition: the block

Two streams $x_1$, $x_2$ of one shape $(\ldots, d_{{model}})$. A block is a pair of *branches* $(F, G)$, functions that
keep that shape. It changes stream {first}, and then stream {second} by a function of the *changed* stream {first}:

$$\text{{1.}} \quad {_line(variant, first, "x")} \qquad\quad \text{{2.}} \quad {_line(variant, second, "y")}$$

{paper} In a stack, $y_1$, $y_2$ of one block are $x_1$, $x_2$ of the next one.

**By hand**, with $F(v) = v^2$, $G(v) = 3v$, $x_1 = 2$, $x_2 = 3$:
first $y_{first} = {y[first]}$, then $y_{second} = {y[second]}$."""


def _backward(variant):
    y1, y2, d_x1, d_x2 = _toy(variant)
    return rf"""## Definition: what backward is given

A loss $\ell$ depends on $y_1$ and $y_2$. Its gradients $d_{{y_1}} = \partial\ell / \partial y_1$ and $d_{{y_2}}$
(of the same shape) are given, and so are the outputs; the inputs are not! Each branch comes with its vector-Jacobian
product: for an input $z$ of $F$ and its weights $w$, `f_vjp(z, d_out)` returns the pair

$$d_z = F'(z)^T d_{{out}}, \qquad d_w = (\partial F(z) / \partial w)^T d_{{out}}$$

of $F$ by itself, without the block around it.

**By hand**, the block above with the loss $\ell = y_1 + y_2$, so $d_{{y_1}} = d_{{y_2}} = 1$:
from $y_1, y_2 = {y1}, {y2}$ follow $x_1, x_2 = 2, 3$ and $d_{{x_1}}, d_{{x_2}} = {d_x1}, {d_x2}$."""


def _dropout(variant):
    from reformer_lab.classroom.answers import answer

    u = np.random.default_rng(0).random(4)
    out = np.arange(1.0, 5.0)
    dropped, _ = answer("A4.dropout").reference(variant)(lambda x: x, None, 0.5, 0)
    rule = r"u \ge p" if variant.keep == "high" else "u < 1 - p"
    return rf"""## Definition: dropout

Dropout at rate $p$ acts on the *output* of a branch. A new generator, `np.random.default_rng(seed)`, draws one number
$u$ from $[0, 1)$ for every entry, all at once: `.random(shape)`. An entry is kept where ${rule}$, and divided by
$1 - p$; all others become zero.

**By hand**, `seed = 0`, $p = 0.5$: $u$ is {", ".join(f"{v:.2f}" for v in u)}. A branch that
returns {", ".join(f"{v:g}" for v in out)} now gives {", ".join(f"{v:g}" for v in dropped(out))}."""


DESCRIBE = {"A4.block": _block, "A4.backward": _backward, "A4.dropout": _dropout}


@styled
def block_picture(variant):
    """The data flow of one block: two streams, and the branches in the order in which the variant adds them."""
    picture = Picture(8.0, 2.6)
    turns = _turns(variant)
    ax = picture.add_subplot()
    box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "#555555"}
    text = {"ha": "center", "va": "center", "zorder": 5}
    for stream, y in ((1, 1.0), (2, 0.0)):
        line = {"color": OKABE_ITO[3 + stream], "linestyle": "-" if stream == 1 else (0, (5, 2)), "linewidth": 2}
        ax.annotate("", (9.6, y), (0.4, y), arrowprops={"arrowstyle": "-|>", **line})
        ax.text(0, y, f"$x_{stream}$", fontsize=14, **text)
        ax.text(10, y, f"$y_{stream}$", fontsize=14, **text)
    for turn, stream in enumerate(turns):
        x = 3.3 + 3.6 * turn
        target = float(stream == 1)
        source = float(stream == 2)
        arrow = {"arrowstyle": "-|>", "color": OKABE_ITO[6 - stream], "shrinkB": 13}
        ax.annotate("", (x, target), (x, source), arrowprops=arrow)
        ax.text(x, 0.5, BRANCHES[stream], bbox=box, fontsize=12, **text)
        ax.text(x, target, "+" if variant.sign > 0 else "−", bbox={**box, "boxstyle": "circle"}, fontsize=12, **text)
        if variant.carry != 1:
            ax.text(x - 1.0, target, f"× {variant.carry:g}", bbox=box, fontsize=10, **text)
        ax.text(x, 1.5, f"{turn + 1}.", fontsize=12, **text)
    ax.set(xlim=(-0.5, 10.5), ylim=(-0.4, 1.65))
    ax.set_axis_off()
    first, second = turns
    return picture.describe(
        f"Diagram of one block, left to right: two streams as arrows; {BRANCHES[first]} changes stream {first}, then "
        f"{BRANCHES[second]} changes stream {second}. While one stream is changed the other one stays as it is.",
        sign=variant.sign,
        factor=variant.carry,
    )


@styled
def masks_picture(masks):
    """What dropout leaves of ones, one row for each call. masks: {name of the call: (n,) array}."""
    picture = Picture(8.5, 0.5 * len(masks) + 0.3)
    start = next(iter(masks))
    others = {name: mask for name, mask in masks.items() if name != start}
    axes = picture.subplots(len(masks), 1, squeeze=False)[:, 0]
    for ax, (name, mask) in zip(axes, masks.items(), strict=True):
        cell_row(ax, [number(float(v)) for v in mask], [OKABE_ITO[1] if v else "#dddddd" for v in mask], title=name)
    return picture.describe(
        "Rows of cells, one row for each call: the output for an input of ones. Grey cells with 0 were dropped.",
        **{f"{name} as {start}": bool(np.array_equal(mask, masks[start])) for name, mask in others.items()},
    )
