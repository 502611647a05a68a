"""What instructors work from: the sources of the assignments, wrong solutions, cheats, nbgrader's configuration."""

from pathlib import Path

FOLDER = Path(__file__).parent
