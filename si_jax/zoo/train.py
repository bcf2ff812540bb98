"""`train`: a training run from Python, and the network that comes of it."""

import os
from pathlib import Path

from ml_collections import ConfigDict

from si_jax.errors import InputError
from si_jax.runtime.terminal import advice, from_python
from si_jax.training.recipes import recipe
from si_jax.zoo.load import LoadedModel, load_model, measured_or_last


def train(config: ConfigDict | str, workdir: str | os.PathLike) -> LoadedModel:
    """Trains a classifier as `train.py` does, and loads it; the same call goes on where a run was stopped.

        model = si_jax.train('quickstart', 'runs/first')

    Args:
        config: The name of a recipe, with an architecture or `si` after a colon if wanted
            ('tradessi_cifar10:wrn_34_10'); or what `si_jax.training.recipes.recipe(name)` returns, with its
            fields changed.
        workdir: The folder of the run, for checkpoints, metrics and config. Made if it does not exist.

    Returns:
        The network with the best robust accuracy on the held-out images, or the last one where none were
        held out.

    Raises:
        InputError: The config is wrong, or belongs to another run than the workdir.
        si_jax.training.loop.DivergedError: A loss or gradient was not finite; the state before was saved.
        SystemExit: SIGTERM or Ctrl-C came, and the run was saved.
    """
    from si_jax.training.loop import DivergedError, run  # with Orbax, which takes seconds to import

    if isinstance(config, str):
        name, _, options = config.partition(':')
        config = recipe(name, options or None)
    with from_python():
        try:
            run(config, str(workdir))
        except (InputError, DivergedError) as error:
            error.args = (advice(str(error)),)
            raise
    return load_model(workdir, measured_or_last(Path(workdir)))
