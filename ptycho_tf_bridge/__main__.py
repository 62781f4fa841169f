"""``python -m ptycho_tf_bridge``."""

import sys

from ptycho_tf_bridge.cli import main

sys.exit(main())
