"""What a page found, in plain words, for a reader who knows nothing of the field."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from si_jax.attacks.presets import PRESETS, SCREENS
from si_jax.attacks.searches import SEARCHES
from si_jax.reports.accuracy import Group, Headline, headlines
from si_jax.reports.audits import Audited, name_of

STANDARD = [name for name in PRESETS if name not in SCREENS]  # the protocols that papers report
WHO = 'The attacker knows the network and'
BLIND = 'The attacker sees only what the network answers and'
BLACK_BOX = {name for name, row in SEARCHES.items() if row.black_box}
REACH = {
    'linf': '{who} may change each pixel, by at most {share:.3g} % of the range from black to white',
    'l2': '{who} may change all pixels, by at most {eps:.3g} in Euclidean distance (white less black is 1)',
    'l1': '{who} may change pixels by at most {eps:.3g} in all (from black to white is 1)',
}


class Summary(NamedTuple):
    """Sentences on one group of results, by question."""

    title: str  # what was measured on
    answers: list[tuple[str, str]]  # (question, answer)


def summary(group: Group, audits: Sequence[Audited], warnings: int) -> Summary:
    """What was attacked, how strongly, what is left, whether it can be believed, and what was not tried.

    Args:
        group: Results on the same images in the same ball.
        audits: Those of the page; what is of these networks counts.
        warnings: How many the results of the page carry.
    """
    dataset, threat = group.about['dataset'], group.about['threat_model']
    count, name = dataset['examples'], dataset.get('name') or 'images of your own'
    found = headlines(group)
    labels = ', '.join(one.column.label for one in found)
    classes = dataset.get('classes')
    verb = 'sorts' if len(found) == 1 else 'sort'
    sorts = f', which {verb} images into {classes} classes' if classes else ''
    networks = 'The network' if len(found) == 1 else f'{len(found)} networks:'
    unseen = ', from a test set that is not trained on' if dataset.get('split') == 'test' else ''
    own = [one for one in audits if _is_of(one, group)]
    tried: dict[str, set[str]] = {}  # by network
    for column in group.columns:
        of_it = tried.setdefault(column.label, set())
        of_it.update(attack for one in column.results for attack in one.about['attacks'])
    attacks = {attack for of_it in tried.values() for attack in of_it}
    reach = REACH.get(threat['norm'], '{who} may change an image by {eps:.3g}')
    reach = reach.format(
        who=BLIND if attacks and attacks <= BLACK_BOX else WHO, share=100 * threat['eps'], eps=threat['eps']
    )
    answers = [
        (
            'What was attacked',
            f'{networks} {labels}{sorts}. It was tried on {count:,} images of {name}{unseen}.'
            if len(found) == 1
            else f'{networks} {labels}{sorts}. All saw the same {count:,} images of {name}{unseen}.',
        ),
        ('How strong the attack is', f'{reach}. {_tried(tried)}'),
        ('What is left', ' '.join(_left(one, count) for one in found)),
        ('Whether it can be believed', _believed(tried, own, warnings)),
        (
            'What was not tried',
            f'Changes of another kind or size than this one ({group.reach}, eps {threat["eps"]:.4g}), such '
            'as noise, blur or weather, turned or cut images; images from elsewhere; and attacks that are '
            'made for this network alone. Of these the numbers say nothing.',
        ),
    ]
    return Summary(group.title, answers)


def _is_of(audit: Audited, group: Group) -> bool:
    """Whether an audit is of a network of the group: by its name, or because it lies beside a result."""
    found = [result for column in group.columns for result in column.results]
    return any(
        audit.path.resolve().parent == one.path.resolve().parent
        or (audit.of and audit.of == name_of(one.model))
        for one in found
    )


def _tried(tried: Mapping[str, set[str]]) -> str:
    """Which attacks were run, from those of each network."""
    first = next(iter(tried.values()), set())
    if not any(tried.values()):
        return 'No attack was run.'
    if any(attacks != first for attacks in tried.values()):
        each = '; '.join(
            f'{", ".join(sorted(attacks)) or "none"} on {label}' for label, attacks in tried.items()
        )
        return f'These attacks were run: {each}. An image counts only if it withstands all of its network.'
    number = 'One attack was' if len(first) == 1 else f'{len(first)} attacks were'
    return f'{number} run ({", ".join(sorted(first))}); an image counts only if it withstands all of them.'


def _left(one: Headline, count: int) -> str:
    column, _, cell, natural = one
    clean = f'{100 * natural.value:.1f} %' if natural else 'not measured'
    if cell is None:
        return f'{column.label} is right on {clean} of the unchanged images; it was not attacked.'
    return (
        f'{column.label} is right on {clean} of the unchanged images, and on {100 * cell.value:.1f} % of '
        f'the attacked ones ({100 * cell.low:.0f} to {100 * cell.high:.0f} %, as far as {count:,} images can '
        'tell).'
    )


def _believed(tried: Mapping[str, set[str]], audits: Sequence[Audited], warnings: int) -> str:
    parts, attacked = [], {label: attacks for label, attacks in tried.items() if attacks}
    lacking = [label for label, attacks in attacked.items() if not attacks & set(STANDARD)]
    protocol = sorted({attack for attacks in attacked.values() for attack in attacks} & set(STANDARD))
    if protocol and not lacking:
        parts.append(f'The standard set of attacks, {", ".join(protocol)}, was run.')
    elif attacked:
        where = f' on {", ".join(lacking)}' if protocol else ''
        parts.append(
            f'AutoAttack, the standard set of attacks, was not run{where}: a stronger attack may leave less, '
            'so the numbers are upper bounds.'
        )
    for verdict, words in (
        ('fail', 'An audit found that the attack does not work on the network: do not trust the number.'),
        ('warn', 'An audit found the number too high, or not settled.'),
        ('few', 'An audit had too few images to say.'),
        ('pass', 'An audit found nothing against it, which is no proof.'),
    ):
        if any(one.verdict == verdict for one in audits):
            parts.append(words)
    if not audits:
        parts.append('No audit was made, which would look for attacks that fail for technical reasons.')
    if warnings:
        parts.append(f'{warnings} warning{"s" * (warnings > 1)} below must be read with the numbers.')
    return ' '.join(parts)
