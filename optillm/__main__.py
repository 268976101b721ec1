"""``python -m optillm``."""

import sys

from optillm.cli.main import main

sys.exit(main())
