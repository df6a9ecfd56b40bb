"""`python -m tauspan`."""

import sys

from tauspan.cli.main import main

sys.exit(main())
