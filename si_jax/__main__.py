"""`python -m si_jax VERB`: the command `si-jax`, where it is not on the path."""

import sys

from si_jax.cli.main import main

if __name__ == '__main__':
    sys.exit(main())
