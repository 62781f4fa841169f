"""The command line of the conformance suite: ``python -m conformance``."""

import sys

from conformance.cli import main

sys.exit(main())
