"""`python -m tauspan`."""

import sys

from tauspan.cli import main

sys.exit(main())
