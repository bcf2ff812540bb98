"""Measures the accuracy of a classifier on clean images and under attacks: `python evaluate.py --help`."""

import sys

from si_jax.cli.evaluate import main

if __name__ == '__main__':
    sys.exit(main())
