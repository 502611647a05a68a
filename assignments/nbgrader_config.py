"""nbgrader's configuration of a course; `python -m reformer_ref classroom generate --seed …` copies it there."""

from reformer_ref.classroom.autograde import configure

c = get_config()  # noqa: F821
configure(c)
