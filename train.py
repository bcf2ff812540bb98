"""Trains a robust classifier: `python train.py --help`."""

from absl import app

from si_jax.cli.train import main, parse

if __name__ == '__main__':
    app.run(main, flags_parser=parse)
