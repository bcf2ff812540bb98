"""Trains a robust classifier: `python train.py --help`."""

import sys

from si_jax.cli.train import command

if __name__ == '__main__':
    command(sys.argv[1:])
