"""What all pictures share: palette, captions with numbers, sources side by side, and one kind of
widget.

A drawing function takes data and returns a ``Picture``. The notebook's cell, its widget and ``make
figures`` all call the same function. Colour never stands alone: buckets carry their number, lines
their own dashes or markers.
"""

import base64
import functools
import html
import inspect
import io
import textwrap
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from reformer_ref._arguments import clear_errors, require_choice, require_float, require_int, shown

OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
LONGEST_SIDE = 200  # of a picture, in inches
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
    """A matplotlib figure, ``width`` × ``height`` inches, that knows its caption and the numbers it
    shows.

    As the last value of a notebook's cell it shows itself, its caption and its numbers.
    """

    colours, shown_dpi = (256, 100)  # of its PNG: colours enough for a drawing, at a third of the size; in a notebook

    @clear_errors
    def __init__(self, width=8.0, height=4.0, **options):
        for name, inches in (("width", width), ("height", height)):
            if not 0 < require_float(name, inches) <= LONGEST_SIDE:
                raise ValueError(f"{name} must be more than 0 and at most {LONGEST_SIDE} inches, got {inches}")
        super().__init__(figsize=(width, height), layout="constrained", facecolor="white", **options)
        FigureCanvasAgg(self)
        self.caption, self.numbers = "", {}

    def tell(self, caption, **numbers):
        """Give the caption (kind of chart, axes, the point) and the numbers shown; returns the
        picture.
        """
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"caption must be a text that says what the picture shows, got {shown(caption)}")
        self.caption, self.numbers = " ".join(caption.split()), numbers
        return self

    @property
    def told(self):
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
            "image/png": base64.b64encode(self.png(self.shown_dpi)).decode(),
            "text/plain": f"<Picture: {self.caption}>",
        }
        display(data, metadata={"image/png": {"alt": self.caption}, "alt": self.caption}, raw=True)
        display(Markdown(f"*{self.caption}*" + (f"\n\n`{self.told}`" if self.numbers else "")))


def styled(draw):
    """Decorator of drawing functions: the style of this house, without a change to anybody's
    settings; clear errors.
    """
    draw = clear_errors(_require_function("draw", draw))

    @functools.wraps(draw)
    def wrapped(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


@clear_errors
def number(value):
    """A number in three significant digits, integers whole with commas; anything else as it is
    written.
    """
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
        raise ValueError(f"{name} must be a dict with at least one entry, got {shown(named, 60)}")
    return named


@clear_errors
def strip(ax, labels, colours, title=None):
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
    """The sources of functions of this package next to each other, each under the name of its file."""
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


@dataclass(frozen=True)
class Range:
    """A slider from low to high in steps, starting at ``start``."""

    low: float
    high: float
    step: float = 1
    start: float | None = None

    def __post_init__(self):
        for name in ("low", "high", "step"):
            require_float(name, getattr(self, name))
        if not (self.low <= self.high and self.step > 0):
            raise ValueError(f"low must be at most high and step above 0, got {self}")
        self.check("start", self.first)

    @property
    def first(self):
        """Where the slider stands at first."""
        return self.low if self.start is None else self.start

    @property
    def ends(self):
        """Both ends."""
        return self.low, self.high

    @property
    def whole(self):
        """Whether it moves over whole numbers."""
        return all(isinstance(x, int) for x in (self.low, self.high, self.step, self.first))

    def check(self, name, value):
        """ValueError unless the slider can stand there."""
        kinds = (int, np.integer) if self.whole else (int, float, np.number)
        if isinstance(value, bool) or not isinstance(value, kinds) or not self.low <= value <= self.high:
            kind = "a whole number" if self.whole else "a number"
            raise ValueError(f"{name} must be {kind} from {self.low} to {self.high}, got {shown(value)}")

    def widget(self, name):
        """The slider."""
        import ipywidgets

        kind = ipywidgets.IntSlider if self.whole else ipywidgets.FloatSlider
        ends = {"min": self.low, "max": self.high, "step": self.step}
        return kind(self.first, **ends, continuous_update=False, **_labelled(name, "22em"))


class Choice:
    """A menu of options, starting at ``start`` (the first one, if not given)."""

    def __init__(self, *options, start=None):
        if not options:
            raise ValueError("options must be at least one, got none")
        self.options, self.first = options, options[0] if start is None else start
        self.check("start", self.first)

    @property
    def ends(self):
        """Every option."""
        return self.options

    def check(self, name, value):
        """ValueError unless it is one of the options."""
        require_choice(name, value, self.options)

    def widget(self, name):
        """The menu; a box to tick for yes and no."""
        import ipywidgets

        if set(self.options) == {True, False} and all(isinstance(o, bool) for o in self.options):
            return ipywidgets.Checkbox(self.first, indent=False, **_labelled(name))
        return ipywidgets.Dropdown(options=list(self.options), value=self.first, **_labelled(name))


@dataclass(frozen=True)
class Text:
    """A line of text to write into."""

    start: str
    longest: int = 400

    def __post_init__(self):
        require_int("longest", self.longest), self.check("start", self.start)

    @property
    def first(self):
        """The text that stands there at first."""
        return self.start

    @property
    def ends(self):
        """A short text, and one of the greatest length."""
        return "a", (self.start + " ") * (self.longest // (len(self.start) + 1))

    def check(self, name, value):
        """ValueError unless it is a text that is neither blank nor too long."""
        if not isinstance(value, str) or not value.strip() or len(value) > self.longest:
            raise ValueError(
                f"{name} must be a text of 1 to {self.longest} characters, not blank, got {shown(value, 60)}"
            )

    def widget(self, name):
        """The line."""
        import ipywidgets

        return ipywidgets.Text(self.start, continuous_update=False, **_labelled(name, "95%"))


def controls(**described):
    """Decorator: describe every argument by a ``Range``, ``Choice`` or ``Text``; where it starts is
    the default.
    """

    for name, control in described.items():
        if not isinstance(control, (Range, Choice, Text)):
            raise TypeError(f"{name} must be a Range, a Choice or a Text, got {shown(control)}")

    def decorate(draw):
        signature = inspect.signature(_require_function("draw", draw))
        if set(signature.parameters) != set(described):
            raise TypeError(f"controls must describe {list(signature.parameters)}, got {list(described)}")

        @functools.wraps(draw)
        def wrapped(**given):
            for name, value in given.items():
                if name not in described:
                    raise TypeError(f"{draw.__name__} has no control {name}; it has {', '.join(described)}")
                described[name].check(name, value)
            return draw(**{name: control.first for name, control in described.items()} | given)

        wrapped.controls = described
        return wrapped

    return decorate


def explore(draw):
    """The widget of a function with ``controls``: its sliders, its picture and its numbers, redrawn
    when one moves.
    """
    import ipywidgets

    if not hasattr(draw, "controls"):
        raise TypeError(f"draw must be a function decorated with controls, got {shown(draw, 60)}")
    inputs = {name: control.widget(name) for name, control in draw.controls.items()}
    image, told = (
        ipywidgets.Image(format="png", layout={"max_width": "100%", "align_self": "flex-start"}),
        ipywidgets.HTML(),
    )

    def redraw(_=None):
        try:
            picture = draw(**{name: widget.value for name, widget in inputs.items()})
        except ValueError as error:
            told.value = f"<b>Not possible:</b> {html.escape(str(error))}"
            return
        image.value = picture.png()
        told.value = f"<p><i>{html.escape(picture.caption)}</i></p><p><code>{html.escape(picture.told)}</code></p>"

    for widget in inputs.values():
        widget.observe(redraw, names="value")
    redraw()
    panel = ipywidgets.HBox(list(inputs.values()), layout={"flex_flow": "row wrap"})
    return ipywidgets.VBox([panel, image, told])


def _require_function(name, function):
    if not inspect.isroutine(function):
        raise TypeError(f"{name} must be a function, got {shown(function)}")
    return function


def _labelled(name, width="auto"):
    return {
        "description": name.replace("_", " "),
        "style": {"description_width": "initial"},
        "layout": {"width": width, "margin": "2px 12px 2px 2px"},
    }
