"""Studies of ours that a CPU can pay for, as tables: not the paper's scale, so not beside its numbers.

They show that methods train, that attacks work and that reports are made from runs; networks and data are far
too small for more.
"""

from si_jax.paper.cells import Column, Evaluation, Row, Table, Training
from si_jax.paper.paper_tables import AA, CW, NATURAL, PAIRS, PGD, SIPGD

COLUMNS = (NATURAL, PGD, CW, Column('PGDLR', 'dlr'), SIPGD, AA)
ATTACKS = tuple(column.attack for column in COLUMNS if column.attack)
NONE = (None,) * len(COLUMNS)


def _study(name: str, title: str, evaluation: Evaluation, *notes: str) -> Table:
    rows = tuple(Row((method,), Training(name, method.replace('-', '').lower()), NONE) for method in PAIRS)
    return Table(name, f"A study, not the paper's scale: {title}", COLUMNS, rows, (evaluation,), notes)


_LIST = (
    _study(
        'digits',
        '8 x 8 pixel digits with a small CNN, Linf, eps 0.2',
        Evaluation(ATTACKS),
        'Trained on 1,200 images for 40 epochs; the checkpoint is the best on 200 held-out ones, and 397 are '
        'for testing.',
    ),
    _study(
        'narrow',
        'CIFAR-10 with a ResNet-18 of an eighth of its width, Linf, eps 8/255',
        Evaluation(ATTACKS, num_examples=100),
        'Trained on 10,000 images for one epoch with 5 attack steps, tested on the first 100 test images.',
    ),
)

STUDIES = {table.name: table for table in _LIST}
