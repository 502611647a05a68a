"""What tests ask of a picture, whoever drew it."""

from reformer_lab.plots.drawing import Picture


def texts(picture):
    """Everything that is written inside its axes."""
    return [text.get_text() for ax in picture.axes for text in ax.texts]


def drawn(picture):
    """The numbers of a picture that has a caption and can be drawn without an error."""
    assert isinstance(picture, Picture)
    assert len(picture.caption) > 40
    assert picture.png(dpi=40).startswith(b"\x89PNG")
    return picture.numbers
