"""Every widget's drawing function at both ends of every control, and with nonsense; the widget without a browser."""

import importlib
import inspect
import pkgutil

import pytest
import reformer_lab.widgets as package
from reformer_lab.plots.drawing import Picture, explore
from tests.pictures import ends


def explorers():
    for module in pkgutil.iter_modules(package.__path__):
        loaded = importlib.import_module(f"{package.__name__}.{module.name}")
        for name, value in vars(loaded).items():
            if hasattr(value, "controls") and inspect.unwrap(value).__module__ == loaded.__name__:
                yield pytest.param(value, id=f"{module.name}.{name}")


ALL = list(explorers())
EVERY_CONTROL = [
    pytest.param(param.values[0], name, id=f"{param.id}-{name}") for param in ALL for name in param.values[0].controls
]


def looks(picture):
    assert isinstance(picture, Picture)
    assert len(picture.caption) > 40
    assert picture.numbers
    return picture.png(dpi=40), picture.numbers_text


def test_there_are_the_promised_widgets():
    modules = {param.id.partition(".")[0] for param in ALL}
    assert {"circle", "chunks", "pattern", "reconstruction", "memory", "buckets"} <= modules


@pytest.mark.parametrize(("draw", "name"), EVERY_CONTROL)
def test_every_control_works_at_both_ends_and_changes_the_picture(draw, name):
    pictures = [looks(draw(**{name: value})) for value in ends(draw, name)]
    assert len({png for png, _ in pictures}) > 1, f"the picture does not follow {name}"
    assert len({numbers for _, numbers in pictures}) > 1, f"the numbers do not follow {name}"


@pytest.mark.parametrize("draw", ALL)
def test_all_controls_at_their_ends_together(draw):
    looks(draw(**{name: ends(draw, name)[0] for name in draw.controls}))
    looks(draw(**{name: ends(draw, name)[-1] for name in draw.controls}))


@pytest.mark.parametrize(("draw", "name"), EVERY_CONTROL)
@pytest.mark.parametrize(
    "nonsense", [None, object(), float("nan"), -1e9, ""], ids=["none", "object", "nan", "low", "empty"]
)
def test_nonsense_is_refused(draw, name, nonsense):
    with pytest.raises(ValueError, match=name):
        draw(**{name: nonsense})


@pytest.mark.parametrize("draw", ALL)
def test_the_widget_redraws(draw):
    """As in the browser: set a control's value, look at the image and the text."""
    panel, image, text = explore(draw).children
    for widget, name in zip(panel.children, inspect.signature(draw).parameters, strict=True):
        before = image.value, text.value
        start = widget.value
        widget.value = next(value for value in ends(draw, name) if value != start)
        assert image.value != before[0], widget.description
        assert text.value != before[1], widget.description
        widget.value = start
        assert text.value == before[1], "the same settings must give the same numbers"
