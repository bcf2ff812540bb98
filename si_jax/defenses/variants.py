"""What changes a row of the table: SI, hypersphere embedding, smoothed labels, another inner objective."""

from si_jax import objectives
from si_jax.defenses.definition import SMOOTHINGS, Defense, Term
from si_jax.defenses.table import ADVERSARIAL_CE, NATURAL_CE
from si_jax.errors import InputError, unknown
from si_jax.objectives import Objective
from si_jax.outputs import cosine, logits, scaled_cosine, scaled_logits

SI_TERM = 'si_margin_ce'


def with_si(defense: Defense, *, scale: float = 15.0, margin: float = 0.2, weight: float = 0.2) -> Defense:
    """The defense with the scale-invariant mechanism: the rows of Table 1 marked with SI.

    FreeAT keeps its one backward pass and gets the regulariser alone. Terms added to an inner objective stay,
    but for those with `scaled_with_si`, which read the scaled cosines too; so do the losses of `of_segment`.
    Such a term has another scale then, and its weight should be chosen anew.

    Args:
        defense: A row of `DEFENSES`.
        scale: s, in the attack and in the regulariser.
        margin: m of eq. 25, on the true class.
        weight: beta, the weight of the regulariser on the adversarial images.

    Raises:
        InputError: The defense has no attack to replace, or a value is out of range.
    """
    if defense.inner is None and not defense.persistent:
        raise InputError('SI needs a defense with an attack: standard training has none; use si=False')
    if defense.hypersphere:
        raise InputError('SI and hypersphere embedding are alternatives: use si=False or he=False')
    _check_cosine(scale, margin)
    term = Term(weight, objectives.si_margin_ce(scale, margin), cosine)
    score = scaled_cosine(scale)
    outer, inner_terms = (
        {name: row._replace(score=score) if row.scaled_with_si else row for name, row in terms.items()}
        for terms in (defense.outer, defense.inner_terms)
    )
    defense = defense._replace(outer={**outer, SI_TERM: term}, inner_terms=inner_terms)
    return defense if defense.inner is None else with_inner(defense, 'si', scale=scale)


def with_he(defense: Defense, *, scale: float = 15.0, margin: float = 0.2) -> Defense:
    """The defense with hypersphere embedding: its network's logits are cosines, and losses read s cos.

    Cross-entropies in the outer objective get a margin on the true class; the inner objective, KL and logit
    pairing have none, and logit pairing compares the cosines as they are.

    Args:
        defense: A row of `DEFENSES`: at, trades or alp.
        scale: s.
        margin: m.

    Source: Pang et al. (2020), repository ShawnXYang/AT_HE, losses.py.

    Raises:
        InputError: A term for which no such form was published, or a value is out of range.
    """
    _check_cosine(scale, margin)
    scaled = scaled_logits(scale)
    forms = {
        NATURAL_CE: (objectives.margin_ce(scale, margin), logits),
        ADVERSARIAL_CE: (objectives.si_margin_ce(scale, margin), logits),
        objectives.kl: (objectives.kl, scaled),
        objectives.logit_pairing: (objectives.logit_pairing, logits),
    }
    terms = defense.outer.values()
    known = all(term.objective in forms and term.score is logits and term.on == 'adv' for term in terms)
    if not known or defense.persistent or defense.inner not in (*forms, objectives.kl_attack):
        raise InputError('hypersphere embedding is defined for at, trades and alp: use he=False')
    outer = {
        name: term._replace(objective=forms[term.objective][0], score=forms[term.objective][1])
        for name, term in defense.outer.items()
    }
    return defense._replace(outer=outer, inner_score=scaled, hypersphere=True)


def with_smoothing(defense: Defense, smoothing: float, over: str) -> Defense:
    """The defense with label smoothing in the cross-entropies of its loss.

    The attack, KL and the SI regulariser keep the labels as they are.

    Args:
        defense: A row of `DEFENSES`, perhaps with SI.
        smoothing: s, in [0, 1).
        over: 'all' classes or the 'others'; see `si_jax.losses.smoothed_cross_entropy`.

    Source: wzekai99/DM-Improves-AT, trades.py ('all', .1); jiequancui/DKL and val-iisc/DAJAT ('others').

    Raises:
        InputError: A value is out of range, or no such form of the loss is known.
    """
    if not 0 <= smoothing < 1:
        raise InputError(f'defense.smoothing={smoothing:g} is not in [0, 1); 0.1 is usual')
    if over not in SMOOTHINGS:
        raise unknown('defense.smoothing_over', over, SMOOTHINGS)
    if not smoothing:
        return defense
    if defense.persistent and defense.inner is None:
        raise InputError(
            f'defense.smoothing={smoothing:g}: the perturbation of FreeAT climbs the loss, so that '
            'its labels would be smoothed too; use smoothing=0'
        )
    entropies = NATURAL_CE, ADVERSARIAL_CE
    outer_terms = defense.outer.items()
    plain = {name for name, term in outer_terms if term.objective in entropies and term.on == 'adv'}
    if not plain or defense.hypersphere:
        raise InputError(
            f'defense.smoothing={smoothing:g} needs a cross-entropy of the logits in the loss, which has '
            f'{", ".join(defense.outer)}: of these no smoothed form was published; use smoothing=0'
        )
    outer = {
        name: term._replace(objective=objectives.smoothed(term.objective, smoothing, over))
        if name in plain
        else term
        for name, term in defense.outer.items()
    }
    return defense._replace(outer=outer)


def _check_cosine(scale: float, margin: float) -> None:
    if not scale > 0:
        raise InputError(f'scale={scale:g} must be positive; the paper uses 15')
    if not 0 <= margin < 2:
        raise InputError(
            f'margin={margin:g} is not in [0, 2), the range of cosine differences; the paper uses 0.2'
        )


INNERS: dict[str, Objective] = {
    'ce': ADVERSARIAL_CE,
    'kl': objectives.kl_attack,
    'si': ADVERSARIAL_CE,  # of scaled cosines
    'calibrated_ce': ADVERSARIAL_CE,  # of logits times 2 / median gap
}


def with_inner(defense: Defense, name: str, *, scale: float = 15.0) -> Defense:
    """The defense with another objective for the attack: what the SI attack and the SI regulariser each do.

    The paper's TRADES-SI changes both at once. TRADES with 'ce' attacks with labels but on logits, with
    'calibrated_ce' on logits of a fixed scale, and TRADES-SI with 'kl' has the regulariser alone.

    Args:
        defense: A defense.
        name: A row of `INNERS`.
        scale: s of scaled cosines.

    Raises:
        InputError: The name is unknown, or there is no attack to replace.
    """
    if name not in INNERS:
        raise unknown('inner objective', name, INNERS)
    if defense.inner is None and not defense.persistent:
        raise InputError(f"inner={name!r} needs a defense with an attack: use inner=''")
    if defense.persistent and 'nat' in INNERS[name].uses:
        raise InputError(f"inner={name!r} needs natural scores, which FreeAT does not have: use 'ce' or 'si'")
    if defense.persistent and name == 'calibrated_ce':
        raise InputError("inner='calibrated_ce' needs natural scores, which FreeAT does not have: use 'ce'")
    if name == 'si':
        _check_cosine(scale, 0.0)
        score = scaled_cosine(scale)
    else:
        score = scaled_logits(scale) if defense.hypersphere else logits
    return defense._replace(inner=INNERS[name], inner_score=score, calibrated=name == 'calibrated_ce')
