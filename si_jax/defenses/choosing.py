"""A defense for a run: of a config, or one of your own; both are checked here."""

import re
from collections.abc import Mapping
from typing import Any

from si_jax.attacks.pgd import BOUNDS, STARTS
from si_jax.defenses.definition import BN_MODES, HELPED, PASSES, WITHSTOOD, Defense
from si_jax.defenses.table import BUILT_IN, DEFENSES
from si_jax.defenses.variants import with_he, with_inner, with_si, with_smoothing
from si_jax.errors import InputError, unknown
from si_jax.threat import Threat, parse_threats

# Metrics of a step, whose names no term may have.
RESERVED = {'loss', 'gradient_norm', 'start_loss', *(f'{part}_accuracy' for part in PASSES), WITHSTOOD}


def from_config(config: Mapping[str, Any]) -> Defense:
    """The defense of a config's section `defense`, with the fields of `training.recipes.defense`.

    Raises:
        InputError: A name is unknown, a weight is negative, a term needs a pass that is not made, or the
            attack cannot leave its start.
    """
    name = config['name']
    if name not in DEFENSES:
        raise unknown('defense', name, DEFENSES)
    defense = DEFENSES[name]
    if config['si']:
        defense = with_si(defense, scale=config['scale'], margin=config['margin'])
    if config.get('he'):
        if config['si']:
            raise InputError('SI and hypersphere embedding are alternatives: use si=False or he=False')
        defense = with_he(defense, scale=config['scale'], margin=config['margin'])
    if config.get('inner'):
        defense = with_inner(defense, config['inner'], scale=config['scale'])
    defense = with_smoothing(defense, config.get('smoothing', 0.0), config.get('smoothing_over', 'all'))
    weights = dict(config['weights'])
    for term, weight in weights.items():
        if term not in defense.outer:
            raise unknown(f'term of {name}{"-SI" if config["si"] else ""}', term, defense.outer)
        if not 0 <= weight < float('inf'):
            raise InputError(f'defense.weights.{term}={weight:g} must be finite and not negative')
    outer, inner_terms = (
        {term: row._replace(weight=weights.get(term, row.weight)) for term, row in terms.items()}
        for terms in (defense.outer, defense.inner_terms)
    )
    defense = defense._replace(
        outer=outer,
        inner_terms=inner_terms,
        passes=tuple(part.strip() for part in config['passes'].split(',')),
        start=config['start'],
        start_radius=config.get('start_radius', defense.start_radius),
        bounds=config.get('bounds', defense.bounds),
        attack_bn=config['attack_bn'],
        replays=config.get('replays', defense.replays),
        branches=config.get('branches', defense.branches),
        others=_threats(config['others']) if 'others' in config else defense.others,
    )
    _check(name, defense)
    return defense


def _threats(text: str) -> tuple[Threat, ...]:
    return tuple(parse_threats(text).values()) if text.strip() else ()


def register(name: str, defense: Defense) -> str:
    """Adds a custom defense to `DEFENSES`, so that configs can name it.

    Call it in the file of the config, as examples/own_defense.py does: whatever reads the file knows the row.

    Args:
        name: Letters, digits and underscores. One that was registered before is replaced.
        defense: The row.

    Returns:
        The name.

    Raises:
        InputError: The name is a row of this library or cannot be one, or the row asks for what is not
            there: a pass, start or mode that is not known, a term that needs a pass that is not made, an
            attack that cannot leave its start.
    """
    if name in BUILT_IN:
        raise InputError(f'defense {name!r} is a row of this library: give yours another name')
    if not re.fullmatch(r'[A-Za-z]\w*', name):
        raise InputError(f'{name!r} cannot be the name of a defense: use letters, digits and _')
    if not isinstance(defense, Defense):
        raise InputError(f'defense {name!r} must be a si_jax.defenses.Defense, not {type(defense).__name__}')
    _check(name, defense)
    DEFENSES[name] = defense
    return name


def check_soft_labels(defense: Defense) -> None:
    """Raises InputError for a defense that has no form for soft labels, as CutMix makes them.

    Published are those of cross-entropy and TRADES (Rebuffi et al., 2021). Those of SI are ours: attack
    CE(s c', q), regulariser CE(s (c' - m q), q); so are those of ALP, GAT and GradAlign.
    """
    terms = [*defense.outer.items(), *defense.inner_terms.items()]
    hard = [
        name
        for name, term in terms
        if not term.objective.soft or term.of_segment or term.of_branches or term.on != 'adv'
    ]
    if defense.inner is not None and not defense.inner.soft:
        hard.append('the attack')
    reason = ''
    if defense.persistent:
        reason = 'the perturbation of FreeAT belongs to single images'
    elif defense.hypersphere or hard:
        what = ', '.join(hard) or 'hypersphere embedding'
        reason = f'no form for mixed labels was published of {what}'
    if reason:
        raise InputError(f'data.cutmix: {reason}; use --config.data.cutmix=0, or at or trades')


def _check(name: str, defense: Defense) -> None:
    """Raises InputError for a defense that cannot be trained with."""
    if not defense.outer:
        raise InputError(f'{name} has no term in `outer`, and so nothing to lower: give one')
    if taken := RESERVED & set(defense.outer):
        raise InputError(
            f'the terms {", ".join(sorted(taken))} of {name} have names of metrics: name them otherwise'
        )
    for part in defense.passes:
        if part not in PASSES:
            raise unknown('pass', part, PASSES)
    for part in defense.before:
        if part not in ('nat', 'start'):
            raise unknown('pass before the attack', part, ('nat', 'start'))
    attacked = defense.inner is not None or defense.persistent
    if not attacked and ({'adv', HELPED} & set(defense.passes) or 'start' in defense.before):
        raise InputError(
            f'defense.passes={",".join(defense.passes)!r}: {name} has no attack, and these passes need one; '
            "use 'nat'"
        )
    if defense.step == 'free' and set(defense.passes) != {'adv'}:
        raise InputError(
            f"defense.passes={','.join(defense.passes)!r}: {name} makes the pass 'adv' alone; use 'adv'"
        )
    if defense.aligned and (defense.inner is None or 'nat' in defense.inner.uses):
        raise InputError(
            f'{name} compares gradients of a loss of the labels, and the inner objective here is none: use '
            "inner='ce' or inner='si'"
        )
    for term, row in defense.outer.items():
        needed = frozenset({'random'}) if row.of_gradients else row.reads
        if missing := needed - set(defense.passes):
            enough = sorted(needed | set(defense.passes), key=PASSES.index)
            raise InputError(
                f'defense.passes={",".join(defense.passes)!r} lacks {", ".join(sorted(missing))!r}, which '
                f'the term {term!r} needs: use {",".join(enough)!r}'
            )
        if row.of_segment and (defense.inner is None or 'nat' in defense.inner.uses or defense.calibrated):
            raise InputError(
                f'the term {term!r} compares losses of the labels, image by image, and the inner objective '
                "here is none: use inner='ce' or inner='si'"
            )
    if defense.branches < 0 or (defense.branches > 0) != any(
        term.of_branches for term in defense.outer.values()
    ):
        raise InputError(
            f'defense.branches={defense.branches} must be positive with dajat, whose loss compares branches, '
            'and 0 with any other defense; TRADES without branches is acat_cifar10'
        )
    if defense.branches and (set(defense.passes) - {'nat', 'adv'} or defense.aligned or defense.persistent):
        raise InputError(f'{name} has branches, which are known of the passes nat and adv: use no other pass')
    if defense.start not in STARTS:
        raise unknown('start', defense.start, STARTS)
    if defense.start == 'original' and defense.inner is not None and 'nat' in defense.inner.uses:
        raise InputError(
            f"defense.start='original' leaves {name} without an attack: the gradient of its inner objective "
            f"is zero at the original image; use 'uniform' or 'gaussian'"
        )
    if not defense.start_radius > 0:
        raise InputError(f'defense.start_radius={defense.start_radius:g} must be positive: 1 is the ball')
    if defense.start_radius != 1 and defense.start in ('original', 'gaussian'):
        raise InputError(
            f'defense.start_radius={defense.start_radius:g} changes nothing with start={defense.start!r}: '
            "use start_radius=1 or start='uniform'"
        )
    if defense.bounds not in BOUNDS:
        raise unknown('bounds', defense.bounds, BOUNDS)
    if defense.attack_bn not in BN_MODES:
        raise unknown('attack_bn', defense.attack_bn, BN_MODES)
    if defense.others and not defense.best_point:
        raise InputError(
            f'defense.others={",".join(map(str, defense.others))!r}: {name} trains in one threat model, '
            "that of the section threat; use others='', or the defense eat"
        )
    if defense.best_point and defense.bounds != 'ball':
        raise InputError(f"defense.bounds={defense.bounds!r}: APGD keeps to its ball; use bounds='ball'")
    if defense.best_point and defense.start_radius > 1:
        raise InputError(
            f'defense.start_radius={defense.start_radius:g}: APGD may keep its start, which must lie in the '
            'ball; use start_radius=1'
        )
    if defense.replays < 1 or (defense.replays > 1 and not defense.persistent):
        raise InputError(f'defense.replays={defense.replays} must be 1, or more with freeat')
