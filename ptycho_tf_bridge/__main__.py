"""``python -m ptycho_tf_bridge``."""

import sys

from ptycho_tf_bridge.start import run_bridge

sys.exit(run_bridge())
