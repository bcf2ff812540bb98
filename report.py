"""Shows what runs measured beside what the paper reports, or on a page: `python report.py --help`."""

import sys

from si_jax.cli.report import main

if __name__ == '__main__':
    sys.exit(main())
