"""The presets by name: searches one after another, each on what the ones before it left."""

from typing import Any, NamedTuple

from si_jax.attacks.search import Search
from si_jax.attacks.searches import SEARCHES, TARGETS, SearchAttack, Setup


class Stage(NamedTuple):
    """A search in a preset.

    Attributes:
        attack: A row of `SEARCHES`.
        restarts: Runs from new random numbers; a targeted search runs once for each target in each of them.
        eot_samples: Gradients averaged in each step.
        targets: Classes that a targeted search aims at.
        largereps: Whether APGD in L1 begins in larger balls.
        settings: Other settings of the search than its row's, as pairs of name and value.
        aimed: Whether it has to reach classes that the caller chose.
        choice: How a targeted search chooses its classes, 'logits' or 'malt'.
        stops: As in `Setup`.
    """

    attack: str
    restarts: int = 1
    eot_samples: int = 1
    targets: int = TARGETS
    largereps: bool = True
    settings: tuple[tuple[str, Any], ...] = ()
    aimed: bool = False
    choice: str = 'logits'
    stops: bool = True

    @property
    def row(self) -> SearchAttack:
        """The search with its settings."""
        return SEARCHES[self.attack].with_settings(self.settings)

    def search(self, classes: int, norm: str = 'linf', restart: int = 0) -> Search:
        """The search of this stage for a classifier of so many classes, in a run."""
        setup = Setup(classes, norm, restart, self.eot_samples, self.largereps, self.aimed, self.stops)
        return self.row.make(setup)


# Croce and Hein (2020); restarts and order as in repository fra31/auto-attack, autoattack.py.
PRESETS: dict[str, tuple[Stage, ...]] = {
    'autoattack': (Stage('apgd-ce'), Stage('apgd-t'), Stage('fab-t'), Stage('square')),
    'autoattack-plus': (
        Stage('apgd-ce', restarts=5),
        Stage('apgd-dlr', restarts=5),
        Stage('fab', restarts=5),
        Stage('square'),
        Stage('apgd-t'),
        Stage('fab-t'),
    ),
    'autoattack-rand': (Stage('apgd-ce', eot_samples=20), Stage('apgd-dlr', eot_samples=20)),
    # `autoattack` with other targets where there are many classes (see VARIANTS).
    'autoattack-malt': (
        Stage('apgd-ce'),
        Stage('apgd-t', choice='malt'),
        Stage('fab-t', choice='malt'),
        Stage('square'),
    ),
    # Ours, a screen (see SCREENS): 324 forward and 324 backward passes for an image that withstands it, where
    # `autoattack` takes 7,811 and 1,910.
    'fast': (Stage('pgd-hybrid-20'), Stage('apgd-cal'), Stage('apgd-t', targets=2)),
}

# Where a protocol has other stages in a norm. `largereps` is set by the standard version alone, in the
# reference code; there the others are the same in every norm.
PRESETS_IN: dict[str, dict[str, tuple[Stage, ...]]] = {
    'l1': {
        'autoattack': (
            Stage('apgd-ce', restarts=5),
            Stage('apgd-t', targets=5),
            Stage('fab-t'),
            Stage('square'),
        ),
        'autoattack-malt': (
            Stage('apgd-ce', restarts=5),
            Stage('apgd-t', targets=5, choice='malt'),
            Stage('fab-t', choice='malt'),
            Stage('square'),
        ),
        **{
            name: tuple(stage._replace(largereps=False) for stage in PRESETS[name])
            for name in ('autoattack-plus', 'autoattack-rand')
        },
    }
}

# Presets that are quick looks, not protocols: their results say so.
SCREENS = {
    'fast': "a screen for development, without seven of AutoAttack's targets, FAB and Square: it cannot see "
    'masked gradients; report autoattack'
}


# Presets as thorough as a protocol that are not that protocol: their results say so.
VARIANTS = {
    'autoattack-malt': 'not standard AutoAttack: MALT chooses the targets of apgd-t and fab-t, which are '
    'others where there are more than ten classes; report autoattack beside it'
}
