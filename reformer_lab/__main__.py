"""``python -m reformer_lab``, the same as ``reformer-ref``."""

import sys

from reformer_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
