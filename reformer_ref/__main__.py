"""``python -m reformer_ref``."""

import sys

from reformer_ref.cli import main

if __name__ == "__main__":
    sys.exit(main())
