"""``python -m ptycho_torch``."""

import sys

from ptycho_torch.commands.cli import main

sys.exit(main())
