"""The attacks by name.

Three tables. `family.ATTACKS` is the PGD family, `searches.SEARCHES` are the attacks of AutoAttack and the
black-box attacks, and `presets.PRESETS` run several searches one after another.

A name can have settings, such as `apgd-ce(steps=50, restarts=5)`: those that its row declares (see
`settings`). `row_of` finds the row of any name.
"""

from typing import Any, NamedTuple

from si_jax.attacks.family import ATTACKS
from si_jax.attacks.pgd import Attack
from si_jax.attacks.presets import PRESETS, PRESETS_IN, Stage
from si_jax.attacks.searches import SEARCHES, SearchAttack, Setup
from si_jax.attacks.settings import Setting, read, split, taken_apart, written
from si_jax.errors import InputError, unknown

# What stands in the name of a search and belongs to its stage, by the field of `Stage`.
OF_STAGE = {'restarts': 'restarts', 'n_targets': 'targets', 'choice': 'choice'}


class Named(NamedTuple):
    """An attack by name.

    Attributes:
        base: The name without settings, in one of the tables.
        settings: The settings in the name, by name and in the order of the row; without defaults.
    """

    base: str
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The canonical name."""
        return written(self.base, self.settings)


def named(name: str, norm: str = 'linf') -> Named:
    """The attack of a name, in a norm: the defaults of some settings are those of its protocol.

    Raises:
        InputError: The attack is unknown (with the near ones), or it does not take a setting, or a value is
            wrong.
    """
    base, texts = taken_apart(name)
    known = (*ATTACKS, *SEARCHES, *PRESETS)
    if base not in known:
        raise unknown('attack', base, known)
    why = ''
    if base in PRESETS:
        searches = ', '.join(dict.fromkeys(stage.attack for stage in PRESETS[base]))
        why = f', which is a fixed protocol; or give settings to its searches ({searches}) by their own names'
    return Named(base, read(base, texts, settings_of(base, norm), why))


def settings_of(base: str, norm: str = 'linf') -> tuple[Setting, ...]:
    """What can stand in the name of an attack, with the defaults in a norm; nothing in that of a preset."""
    if base in ATTACKS:
        return ATTACKS[base].settings
    if base not in SEARCHES:
        return ()
    alone = _alone(base, norm)
    defaults = {key: getattr(alone, field) for key, field in OF_STAGE.items()}
    return tuple(one._replace(default=defaults.get(one.name, one.default)) for one in SEARCHES[base].settings)


def row_of(name: str) -> Attack | SearchAttack | None:
    """The row of an attack by its name, with settings or not; None for a preset and for an unknown name.

    Of the PGD family it is the row of the table: settings in the name stand in place of the caller's.
    """
    try:
        base, settings = named(name)
    except InputError:
        return None
    if base in SEARCHES:
        return SEARCHES[base].with_settings(_of_search(settings))
    return ATTACKS.get(base)


def _of_search(settings: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((key, value) for key, value in settings.items() if key not in OF_STAGE)


def _alone(base: str, norm: str) -> Stage:
    """A search alone, without settings: the stage that it is in `autoattack`, if it is one."""
    presets = PRESETS | PRESETS_IN.get(norm, {})
    return {stage.attack: stage for stage in presets['autoattack']}.get(base, Stage(base))


def stages(name: str, eot_samples: int, norm: str = 'linf', *, randomised: bool = False) -> tuple[Stage, ...]:
    """The stages of a preset in a norm, or a search as its only stage.

    A search alone is the stage that it is in `autoattack`, if it is one, with the settings in its name, and
    with the caller's EoT samples if it averages. For a random classifier every search takes them, and none
    stops before its last iteration.
    """
    presets = PRESETS | PRESETS_IN.get(norm, {})
    if name in presets:
        return tuple(stage._replace(stops=not randomised) for stage in presets[name])
    base, settings = named(name, norm)
    own = {field: settings[key] for key, field in OF_STAGE.items() if key in settings}
    own |= {'settings': _of_search(settings), 'stops': not randomised}
    samples = eot_samples if randomised or SEARCHES[base].averages else 1
    return (_alone(base, norm)._replace(**own, eot_samples=samples),)


def parse(attacks: str | list[str] | tuple[str, ...], norm: str = 'linf') -> tuple[str, ...]:
    """The canonical names of the attacks in `attacks`, a comma string or a sequence, in order.

    Commas inside parentheses do not separate attacks.

    Args:
        attacks: The names, some perhaps with settings.
        norm: Of the threat model, on which the defaults of some settings depend.

    Raises:
        InputError: A name is unknown (with the near ones), has wrong settings, is given twice, or there is
            none.
    """
    given = split(attacks) if isinstance(attacks, str) else [str(name) for name in attacks]
    names = [named(name, norm).name for name in given]
    for name in names:
        if names.count(name) > 1:
            alike = [one.strip() for one, canonical in zip(given, names, strict=True) if canonical == name]
            spelt = f', as {" and ".join(alike)}' if len(set(alike)) > 1 else ''
            raise InputError(f'attack {name!r} is given {len(alike)} times{spelt}: give it once')
    if not names:
        known = (*ATTACKS, *SEARCHES, *PRESETS)
        raise InputError(f'no attack given: name one or more of {", ".join(known)}')
    for name in names:
        if isinstance(row := row_of(name), SearchAttack):
            row.make(Setup(10, norm))  # refuses what its settings make impossible together, in this norm
    return tuple(names)
