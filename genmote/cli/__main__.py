"""`python -m genmote.cli` is `genmote`."""

import sys

from genmote.cli import main

sys.exit(main())
