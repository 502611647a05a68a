"""nbgrader's configuration of a course; `python -m reformer_lab classroom generate --seed …` copies it there."""

from reformer_lab.classroom.autograde import configure

c = get_config()  # noqa: F821
configure(c)
