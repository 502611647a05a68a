"""What data a record is about: that of the configuration, or a file of the user's."""


def given_name(record):
    """The name of the file or folder given with ``--data``, or None."""
    given = record["runs"][0]["settings"].get("data_given") if record["runs"] else None
    return None if given is None else given["name"]


def data_name(record):
    """The name of the data: of the file or folder given with ``--data``, else as the configuration
    has it.
    """
    return given_name(record) or record["config"]["data"]["name"]


def on_given(record):
    """ " on NAME" where data were given with ``--data``, else nothing: for what has standard data
    without a name.
    """
    name = given_name(record)
    return "" if name is None else f" on {name}"
