"""Studies of ours that a CPU can pay for, as tables: not the paper's scale, so not beside its numbers.

All but `evidence` show only that methods train, that attacks work and that reports are made from runs:
networks and data are far too small for more. What `evidence` can say stands in docs/study.md.
"""

from collections.abc import Mapping
from typing import Any

from si_jax.paper.cells import NO_OVERRIDES, Column, Evaluation, Row, Table, Training
from si_jax.paper.paper_tables import AA, CW, NATURAL, PAIRS, PGD, SIPGD

COLUMNS = (NATURAL, PGD, CW, Column('PGDLR', 'dlr'), SIPGD, AA)
ATTACKS = tuple(column.attack for column in COLUMNS if column.attack)
NONE = (None,) * len(COLUMNS)


def _study(name: str, title: str, evaluation: Evaluation, *notes: str) -> Table:
    rows = tuple(Row((method,), Training(name, method.replace('-', '').lower()), NONE) for method in PAIRS)
    return Table(name, f"A study, not the paper's scale: {title}", COLUMNS, rows, (evaluation,), notes)


# Name, row of the digits' config, what is added, and the fields that add it.
_INGREDIENTS: tuple[tuple[str, str, str, Mapping[str, Any]], ...] = (
    ('TRADES', 'trades', '', NO_OVERRIDES),
    ('TRADES', 'trades', ' + average', {'average.kind': 'ema'}),
    ('TRADES', 'trades', ' + AWP', {'awp.gamma': 0.005}),
    ('N-FGSM', 'nfgsm', '', NO_OVERRIDES),
    ('NuAT', 'nuat', '', NO_OVERRIDES),
)
_EVIDENCE = {
    'TRADES': 'trades',
    'TRADES-SI': 'tradessi',
    'TRADES + SI regulariser': 'tradesreg',
    'N-FGSM': 'nfgsm',
    'N-FGSM-SI': 'nfgsmsi',
    'TRADES + SI attack': 'tradesatt',
    'TRADES + calibrated attack': 'tradescal',
    'AT': 'at',
    'AT-SI': 'atsi',
}
_LIST = (
    _study(
        'digits',
        '8 x 8 pixel digits with a small CNN, Linf, eps 0.2',
        Evaluation(ATTACKS),
        'Trained on 1,200 images for 40 epochs; the checkpoint is the best on 200 held-out ones, and 397 are '
        'for testing.',
    ),
    Table(
        'ingredients',
        "A study, not the paper's scale: modern ingredients and single-step defenses, with and without SI, "
        'on 8 x 8 pixel digits with a small CNN, Linf, eps 0.2',
        tuple(column for column in COLUMNS if column in (NATURAL, PGD, AA)),
        tuple(
            Row((f'{name}{"-SI" * si}{suffix}',), Training('digits', f'{row}{"si" * si}', fields), NONE[:3])
            for name, row, suffix, fields in _INGREDIENTS
            for si in (False, True)
        ),
        (Evaluation(('pgd', 'autoattack')),),
        (
            'Trained as in the study on the digits: 1,200 images, 40 epochs, 397 images for testing. The '
            'average is an exponential one of the weights, and AWP has a gamma of 0.005.',
            'The single-step defenses have the schedule of the others, which is not that of their authors, '
            'and no average.',
        ),
        pairs=(
            *((f'{name}{suffix}', f'{name}-SI{suffix}') for name, _, suffix, _ in _INGREDIENTS),
            *(
                (f'TRADES{si}', f'TRADES{si}{suffix}')
                for si in ('', '-SI')
                for _, row, suffix, _ in _INGREDIENTS
                if row == 'trades' and suffix
            ),
        ),
    ),
    Table(
        'evidence',
        "A study, not the paper's scale: all of CIFAR-10 with a ResNet-18 of an eighth of its width, Linf, "
        'eps 8/255',
        (NATURAL, PGD, CW, SIPGD, Column('fast', 'fast'), AA),
        tuple(Row((name,), Training('evidence', row), NONE) for name, row in _EVIDENCE.items()),
        (
            Evaluation(('pgd', 'cw', 'sipgd', 'fast'), num_examples=4000),
            Evaluation((AA.attack,), num_examples=250),
        ),
        (
            'Trained on 49,000 images with batches of 64: two epochs with 5 attack steps, N-FGSM five '
            'epochs, a cosine schedule and averaged weights. AutoAttack on the first 250 test images, all '
            'other attacks and clean accuracy on the first 4,000.',
        ),
        pairs=(
            ('TRADES', 'TRADES-SI'),
            ('TRADES', 'TRADES + SI regulariser'),
            ('TRADES', 'TRADES + SI attack'),
            ('TRADES', 'TRADES + calibrated attack'),
            ('TRADES + SI regulariser', 'TRADES-SI'),
            ('AT', 'AT-SI'),
            ('N-FGSM', 'N-FGSM-SI'),
        ),
        screen=('fast', AA.title),
    ),
    _study(
        'narrow',
        'CIFAR-10 with a ResNet-18 of an eighth of its width, Linf, eps 8/255',
        Evaluation(ATTACKS, num_examples=100),
        'Trained on 10,000 images for one epoch with 5 attack steps, tested on the first 100 test images.',
    ),
)

STUDIES = {table.name: table for table in _LIST}
