"""``python -m innerloop``: the command line."""

import sys

from innerloop.cli import main

sys.exit(main())
