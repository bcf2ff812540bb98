"""Configs as config.json holds them, and those of older versions completed."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from si_jax import defenses
from si_jax.training.recipes.fields import paper


def plain(config: ConfigDict) -> dict[str, Any]:
    """A config as config.json holds it: references resolved, JSON's types."""
    resolved: dict[str, Any] = json.loads(json.dumps(config.copy_and_resolve_references().to_dict()))
    return resolved


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that was stored, with today's default for every field that it lacks.

    A version that adds a field gives it a default which leaves runs as they were. So a run of before that
    version has that value, and everything that reads a stored config reads it through this function. What is
    of another kind than expected stays as it is: to refuse it is for the reader.
    """
    stored = config.get('defense')
    # A defense that is registered in the file of its config may not be known here: its fields are stored.
    name = stored.get('name') if isinstance(stored, Mapping) else None
    row = name if isinstance(name, str) and name in defenses.DEFENSES else 'standard'
    defaults = paper(row, dataset='digits', arch='resnet18')
    # Terms belong to the defense: a field `defense.weights.TERM` is not one that a version adds.
    del defaults.defense['weights']
    return _filled(config, plain(defaults))


def _filled(stored: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `stored`, and those of `defaults` that it lacks, section by section."""
    both = {
        name: _filled(value, defaults[name])
        for name, value in stored.items()
        if isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping)
    }
    return {**stored, **both, **{name: value for name, value in defaults.items() if name not in stored}}
