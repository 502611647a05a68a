"""What data a record is about: that of the configuration, or a file of the user's."""


def data_name(record):
    """The name of the data: of the file or folder given with ``--data``, else as the configuration has it."""
    given = record["runs"][0]["settings"].get("data_given") if record["runs"] else None
    return record["config"]["data"]["name"] if given is None else given["name"]
