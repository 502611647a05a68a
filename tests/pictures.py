"""Checks of any picture, and the values of an explorer's controls."""

import inspect

from reformer_lab.plots.drawing import LONGEST_TEXT, Picture


def ends(draw, name):
    """Both ends of a slider, each entry of a menu, a short and a longest text."""
    accepted = draw.controls[name]
    if accepted is str:
        start = inspect.signature(draw).parameters[name].default
        return "a", (start + " ") * (LONGEST_TEXT // (len(start) + 1))
    return (True, False) if accepted is bool else accepted[:2] if isinstance(accepted, tuple) else accepted


def texts(picture):
    """All texts inside its axes."""
    return [text.get_text() for ax in picture.axes for text in ax.texts]


def drawn(picture):
    """The numbers of a picture that has a caption and can be drawn without an error."""
    assert isinstance(picture, Picture)
    assert len(picture.caption) > 40
    assert picture.png(dpi=40).startswith(b"\x89PNG")
    return picture.numbers
