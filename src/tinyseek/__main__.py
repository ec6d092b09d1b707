"""`python -m tinyseek`: the same as the `tinyseek` command."""

import sys

from tinyseek.cli import main

sys.exit(main())
