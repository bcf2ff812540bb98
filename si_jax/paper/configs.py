"""The config that a row of a table was trained with, and in what a run differs from it."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from si_jax.errors import InputError
from si_jax.paper.cells import Training
from si_jax.reports.results import IRRELEVANT, Run
from si_jax.storage.trees import differences
from si_jax.training.recipes import completed, recipe


def config_of(source: Training, overrides: Mapping[str, Any]) -> ConfigDict:
    """The config that `python train.py --config=... --config.FIELD=VALUE` has.

    Args:
        source: The config and what follows its name.
        overrides: Dotted field to value.

    Raises:
        InputError: A field does not exist, or a value is of the wrong type.
    """
    config = recipe(source.config, source.argument)
    for field, value in overrides.items():
        section, names = config, field.split('.')
        try:
            for name in names[:-1]:
                section = section[name]
            if names[-1] not in section or isinstance(section[names[-1]], ConfigDict):
                raise KeyError('no such field')
            section[names[-1]] = value
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            reason = ' '.join(str(error.args[0]).split())
            raise InputError(
                f'override {field}={value!r} does not fit configs/{source.config}.py: {reason}'
            ) from error
    return config


def differences_from(run: Run, wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted field to (wanted, run), for the fields in which a run differs, less those that do not matter."""
    return {
        name: pair
        for name, pair in differences(completed(wanted), completed(run.config)).items()
        if not any(name == one or name.startswith(f'{one}.') for one in IRRELEVANT)
    }
