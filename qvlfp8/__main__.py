"""``python -m qvlfp8``."""

import sys

from qvlfp8.cli import main

sys.exit(main())
