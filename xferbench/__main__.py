"""``python -m xferbench``."""

from __future__ import annotations

import sys

from xferbench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
