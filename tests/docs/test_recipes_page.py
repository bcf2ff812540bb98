"""The page of recipes has a row for each file, with the passes that the code counts."""

import pathlib
import re

from si_jax import defenses
from si_jax.cost import flops
from si_jax.training import recipes

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'recipes.md'


def passes(name, options=None):
    config = recipes.recipe(name, options)
    defense = defenses.from_config(config.defense)
    return flops.training_passes(defense, config.attack.steps, awp=config.awp.gamma > 0).total


def test_passes_of_every_row_with_and_without_si():
    found = re.findall(r'^\| `(\w+)`[^|]*\|[^|]+\| (\d+) F[^|]*\|(.*)$', PAGE.read_text(), re.M)
    rows = {name: (int(count), re.search(r'\((\d+) F\)', rest)) for name, count, rest in found}
    assert len(rows) == 13
    for name, (count, other) in rows.items():
        assert passes(name) == count, name
        assert passes(name, 'si') == (int(other[1]) if other else count), name
