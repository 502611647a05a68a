"""The stored records of measurements and claims: JSON files that travel with the package."""

from pathlib import Path

FOLDER = Path(__file__).parent
