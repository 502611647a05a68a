"""Shared by all pictures: palette, captions with numbers, checks of data, sources side by side, and explorers.

A drawing function takes data and returns a ``Picture``. The notebook's cell, its widget and ``make figures`` all call
the same function. Colour is never the only sign: buckets carry their number, lines their own dashes or markers.
"""

import base64
import functools
import html
import inspect
import io
import textwrap

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from reformer_ref._arguments import clear_errors, require_choice, require_float, require_int, short_repr

OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
LONGEST_SIDE = 200  # of a picture, in inches
WRITTEN_UP_TO = 16  # tokens: in larger matrices no number fits into a cell
LONGEST_TEXT = 120  # characters of an explorer's line of text
SOURCE_STYLE = "font-size:12px;white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid #999;padding:6px"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=[OKABE_ITO[i] for i in (4, 5, 2, 6, 0, 1)])
    + matplotlib.cycler(linestyle=["-", "--", "-.", ":", "-", "--"])
    + matplotlib.cycler(marker=list("osD^vP")),
    "lines.markersize": 5,
    "legend.frameon": False,
    "image.cmap": "cividis",
}


class Picture(Figure):
    """A matplotlib figure, ``width`` × ``height`` inches, with a caption and the numbers in it.

    As the last value of a notebook's cell it displays itself, its caption and its numbers.
    """

    colours = 256  # of its PNG: enough for a drawing, at a third of the size
    notebook_dpi = 100

    @clear_errors
    def __init__(self, width=8.0, height=4.0, **options):
        for name, inches in (("width", width), ("height", height)):
            if not 0 < require_float(name, inches) <= LONGEST_SIDE:
                raise ValueError(f"{name} must be more than 0 and at most {LONGEST_SIDE} inches, got {inches}")
        super().__init__(figsize=(width, height), layout="constrained", facecolor="white", **options)
        FigureCanvasAgg(self)
        self.caption, self.numbers = "", {}

    def describe(self, caption, **numbers):
        """Set the caption (kind of chart, axes, the point) and the numbers beside it; returns the picture."""
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"caption must be a text that describes the picture, got {short_repr(caption)}")
        self.caption, self.numbers = " ".join(caption.split()), numbers
        return self

    @property
    def numbers_text(self):
        """The numbers as one text: ``name = value · name = value``."""
        return " · ".join(f"{name} = {number(value)}" for name, value in self.numbers.items())

    def png(self, dpi=100):
        """The picture as PNG, bytes, in so many ``colours``."""
        require_int("dpi", dpi, 1, 1200)
        full, small = io.BytesIO(), io.BytesIO()
        self.savefig(full, format="png", dpi=dpi)
        image = Image.open(full).convert("RGB").quantize(self.colours, dither=Image.Dither.NONE)
        image.save(small, format="png", optimize=True, dpi=(dpi, dpi))
        return small.getvalue()

    def _ipython_display_(self):
        from IPython.display import Markdown, display

        data = {
            "image/png": base64.b64encode(self.png(self.notebook_dpi)).decode(),
            "text/plain": f"<Picture: {self.caption}>",
        }
        display(data, metadata={"image/png": {"alt": self.caption}, "alt": self.caption}, raw=True)
        display(Markdown(f"*{self.caption}*" + (f"\n\n`{self.numbers_text}`" if self.numbers else "")))


def styled(draw):
    """Decorator of drawing functions: the style of all pictures, whatever the user's settings; clear errors."""
    draw = clear_errors(_require_function("draw", draw))

    @functools.wraps(draw)
    def wrapped(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


@clear_errors
def number(value):
    """A number in three significant digits, integers whole with commas; anything else as it is written."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if not isinstance(value, (float, np.floating)):
        return str(value)
    if not np.isfinite(value) or value == 0:
        return f"{value:g}"
    if 1e-3 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):,.10g}"
    return f"{value:.2e}"


@clear_errors
def bucket_colours(n_buckets):
    """Colours of buckets 0 … n_buckets − 1, (n_buckets, 4) RGBA: Okabe–Ito up to 8, cividis beyond."""
    if require_int("n_buckets", n_buckets, 1, 1 << 24) <= len(OKABE_ITO):
        return matplotlib.colors.to_rgba_array(OKABE_ITO[:n_buckets])
    return matplotlib.colormaps["cividis"](np.linspace(0, 1, n_buckets))


@clear_errors
def readable_on(colour):
    """ "black" or "white", whichever can be read on the colour (luminance of WCAG 2)."""
    rgb = np.asarray(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return "black" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "white"


def entries(name, named):
    """``named``, if it is a dict with at least one entry; ValueError if not."""
    if not isinstance(named, dict) or not named:
        raise ValueError(f"{name} must be a dict with at least one entry, got {short_repr(named, 60)}")
    return named


def as_array(name, value, shape):
    """``value`` as an array; ValueError unless it has this shape, where None stands for any size ≥ 1."""
    value = np.asarray(value)
    sizes = [size or n for size, n in zip(shape, value.shape, strict=False)]
    if value.ndim != len(shape) or list(value.shape) != sizes or 0 in value.shape:
        text = ", ".join(str(size or "n") for size in shape) + "," * (len(shape) == 1)
        raise ValueError(f"{name} must have shape ({text}), got {value.shape}")
    return value


def as_square(name, matrix, largest=np.inf):
    """``matrix`` as an array (L, L) of numbers from 0 to ``largest``; ValueError if it is not one."""
    matrix = as_array(name, matrix, (None, None))
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must have shape (L, L) with L ≥ 1, got {matrix.shape}")
    if not (np.isfinite(matrix) & (matrix >= 0) & (matrix <= largest + 1e-9)).all():
        raise ValueError(
            f"{name} must hold finite numbers from 0 to {largest:g}, got {matrix.min():.3g} to {matrix.max():.3g}"
        )
    return matrix


def heat_map(ax, matrix, largest=1.0, factor=100, labels=None):
    """Draw a matrix (L, L), zeros white; returns the image.

    Up to 16 tokens the entries, times ``factor``, are written into the cells, and labels at the axes (default: 0, 1,
    …); factor None: neither.
    """
    colours = matplotlib.colormaps["cividis_r"].with_extremes(bad="white")
    image = ax.imshow(np.ma.masked_equal(matrix, 0), cmap=colours, vmin=0, vmax=max(largest, 1e-9))
    ax.spines[:].set_visible(True)
    if len(matrix) <= WRITTEN_UP_TO and factor is not None:
        labels = [str(i) for i in range(len(matrix))] if labels is None else labels
        ax.set_xticks(range(len(matrix)), labels, rotation=0 if max(map(len, labels)) <= 4 else 60)
        ax.set_yticks(range(len(matrix)), labels)
        ax.tick_params(length=0)
        for (i, j), entry in np.ndenumerate(matrix):
            if entry > 0:
                colour = readable_on(image.to_rgba(float(entry)))
                ax.text(j, i, f"{factor * entry:.0f}", ha="center", va="center", fontsize=9, color=colour)
    return image


@clear_errors
def cell_row(ax, labels, colours, title=None):
    """One row of cells from left to right: labels, n texts; colours (n, 4) RGBA or n names."""
    colours = matplotlib.colors.to_rgba_array(colours)
    if len(labels) != len(colours):
        raise ValueError(f"colours must be one for each of the {len(labels)} labels, got {len(colours)}")
    for x, (label, colour) in enumerate(zip(labels, colours, strict=True)):
        ax.add_patch(Rectangle((x, 0), 1, 1, facecolor=colour, edgecolor="white", linewidth=1))
        ax.text(x + 0.5, 0.5, label, ha="center", va="center", color=readable_on(colour), fontsize=9)
    ax.set(xlim=(0, len(labels)), ylim=(0, 1), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if title:
        ax.set_ylabel(title, rotation=0, ha="right", va="center")


class Html(str):
    """Text that a notebook shows as HTML."""

    def _repr_html_(self):
        return str(self)


@clear_errors
def side_by_side(*functions):
    """The sources of functions next to each other, each under the name of its file."""
    cells = []
    for function in functions:
        plain = inspect.unwrap(_require_function("function", function))
        name = f"{plain.__module__.replace('.', '/')}.py · {plain.__qualname__}"
        source = html.escape(textwrap.dedent(inspect.getsource(plain)).rstrip())
        cells.append(
            f'<div style="flex:1 1 28em;min-width:0"><b>{html.escape(name)}</b>'
            f'<pre style="{SOURCE_STYLE}">{source}</pre></div>'
        )
    return Html(f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(cells)}</div>')


def controls(**accepted):
    """Decorator of a function with default values: what each argument of its explorer may be.

    As for ``ipywidgets.interact``: (low, high) or (low, high, step) makes a slider, a list a menu; ``bool`` makes a
    checkbox, and ``str`` a line of text. The function refuses everything else.
    """

    def decorate(draw):
        signature = inspect.signature(_require_function("draw", draw))
        if set(signature.parameters) != set(accepted):
            raise TypeError(f"controls must describe {list(signature.parameters)}, got {list(accepted)}")

        @functools.wraps(draw)
        def checked(*args, **kwargs):
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                _require_accepted(name, value, accepted[name])
            return draw(*args, **kwargs)

        checked.controls = accepted
        return checked

    return decorate


def _require_accepted(name, value, accepted):
    """ValueError unless a control can have this value."""
    if isinstance(accepted, tuple):
        whole = all(isinstance(end, int) for end in accepted)
        kinds = (int, np.integer) if whole else (int, float, np.number)
        if isinstance(value, bool) or not isinstance(value, kinds) or not accepted[0] <= value <= accepted[1]:
            kind = "a whole number" if whole else "a number"
            raise ValueError(f"{name} must be {kind} from {accepted[0]} to {accepted[1]}, got {short_repr(value)}")
    elif accepted is str:
        if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_TEXT:
            raise ValueError(f"{name} must be a text of 1 to {LONGEST_TEXT} characters, got {short_repr(value, 60)}")
    else:
        require_choice(name, value, [True, False] if accepted is bool else accepted)


def explore(draw):
    """Make the widget of a function with ``controls``: its picture and numbers, redrawn when a control moves."""
    import ipywidgets

    if not hasattr(draw, "controls"):
        raise TypeError(f"draw must be a function decorated with controls, got {short_repr(draw, 60)}")
    inputs = {}
    for name, parameter in inspect.signature(draw).parameters.items():
        accepted, default = draw.controls[name], parameter.default
        widget = ipywidgets.interactive.widget_from_abbrev(default if accepted in (bool, str) else accepted, default)
        widget.description = name.replace("_", " ")
        widget.style.description_width = "initial"
        widget.layout.width = "95%" if accepted is str else "22em" if isinstance(accepted, tuple) else "auto"
        widget.continuous_update = False
        inputs[name] = widget
    image = ipywidgets.Image(format="png", layout={"max_width": "100%", "align_self": "flex-start"})
    text = ipywidgets.HTML()

    def redraw(_=None):
        try:
            picture = draw(**{name: widget.value for name, widget in inputs.items()})
        except ValueError as error:
            text.value = f"<b>Not possible:</b> {html.escape(str(error))}"
            return
        image.value = picture.png()
        text.value = (
            f"<p><i>{html.escape(picture.caption)}</i></p><p><code>{html.escape(picture.numbers_text)}</code></p>"
        )

    for widget in inputs.values():
        widget.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([ipywidgets.HBox(list(inputs.values()), layout={"flex_flow": "row wrap"}), image, text])


def _require_function(name, function):
    if not inspect.isroutine(function):
        raise TypeError(f"{name} must be a function, got {short_repr(function)}")
    return function
