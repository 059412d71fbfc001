"""Runs the command line as `python -m jaxlens.cli`."""

import sys

from jaxlens.cli import main

sys.exit(main())
