"""``python -m smlm_bridge`` is ``smlm-bridge``."""

import sys

from smlm_bridge.cli import main

if __name__ == "__main__":
    sys.exit(main())
