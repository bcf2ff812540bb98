"""Tables 2 to 10 of the paper as data: its numbers, and for each the run and the evaluation that measure it.

Source: Xu et al., "Scale-Invariant Adversarial Attack for Evaluating and Enhancing Adversarial Defenses".
All rows are at Linf, eps = 8/255, with 20 steps of eps / 4. Where the paper leaves a choice, a note of the
table says which one was made. Numbers are accuracies in percent, and distances in Table 9.
"""

from collections.abc import Iterable, Mapping

from si_jax.paper.cells import Column, Download, Evaluation, Row, Table, Training

DATASETS = {'CIFAR-10': 'cifar10', 'CIFAR-100': 'cifar100', 'SVHN': 'svhn'}
NETWORKS = {'ResNet18': '', 'WideResNet-34-10': 'wrn_34_10'}
METHODS = ('AT', 'TRADES', 'ALP', 'MART')
PAIRS = tuple(f'{method}{kind}' for method in METHODS for kind in ('', '-SI'))

NATURAL, PGD, CW, SIPGD, AA = (
    Column('Natural', ''),
    Column('PGD', 'pgd'),
    Column('PGDCW', 'cw'),
    Column('SI-PGD', 'sipgd'),
    Column('AA', 'autoattack'),
)
WHITE_BOX = (NATURAL, PGD, CW, SIPGD, AA)
EVALUATED = (Evaluation(('pgd', 'cw', 'sipgd', 'autoattack')),)
CHOSEN = (
    'The paper states neither which checkpoint it evaluates nor how many seeds it has: ours is the best by '
    'robust accuracy on 1,000 held-out training images.'
)

# Factors on the logits for PGD at its best scale: those of Fig. 1, half decades from 1e-3 to 1e3.
SCALES = tuple(float(f'{10 ** (half / 2):.6g}') for half in range(-6, 7))


def config_of(method: str, dataset: str) -> str:
    """The config of a method as the paper writes it: 'TRADES-SI' on 'CIFAR-10' is 'tradessi_cifar10'."""
    stem = method.replace('RFGSM-AT', 'RFGSM').replace('-', '').lower()
    return f'{stem}_{DATASETS[dataset]}'


# Tables 2 to 4: TRADES, then TRADES-SI with one parameter varied.
_TRADES = (84.15, 55.23, 52.67, 52.24, 50.06)
_SCALE = {
    10.0: (83.75, 58.03, 53.21, 53.34, 50.05),
    15.0: (84.05, 58.73, 53.56, 54.77, 50.60),
    20.0: (84.15, 58.73, 53.49, 55.46, 50.11),
    30.0: (83.71, 58.26, 52.94, 56.33, 50.12),
    40.0: (83.16, 57.90, 52.77, 57.37, 49.54),
    50.0: (83.10, 57.27, 52.22, 57.92, 49.04),
    60.0: (82.12, 57.38, 52.20, 58.47, 49.06),
}
_MARGIN = {
    0.0: (82.95, 58.01, 52.86, 54.73, 50.11),
    0.1: (83.10, 58.46, 52.98, 54.28, 50.17),
    0.2: (84.05, 58.73, 53.56, 54.77, 50.60),
    0.3: (83.62, 57.82, 53.20, 53.89, 50.00),
    0.4: (83.49, 57.78, 53.16, 54.12, 50.17),
    0.5: (82.72, 57.58, 53.19, 54.15, 50.13),
    0.6: (83.37, 57.35, 52.71, 53.53, 49.36),
}
_BETA = {
    0.0: (81.58, 59.59, 52.67, 52.95, 49.59),
    0.1: (83.04, 58.53, 53.05, 53.95, 50.05),
    0.2: (84.05, 58.73, 53.56, 54.77, 50.60),
    0.3: (84.36, 57.96, 53.27, 54.50, 50.34),
    0.4: (84.82, 58.12, 53.51, 54.55, 50.55),
    0.5: (84.15, 57.82, 53.11, 54.23, 50.22),
    0.6: (84.29, 57.95, 53.27, 54.26, 50.08),
}


def _sensitivity(
    name: str, symbol: str, field: str, chosen: float, rows: Mapping[float, tuple[float, ...]], *notes: str
) -> Table:
    def row(value: float, paper: tuple[float, ...]) -> Row:
        overrides = {} if value == chosen else {field: float(value)}
        return Row((f'TRADES-SI, {symbol} = {value:g}',), Training('tradessi_cifar10', '', overrides), paper)

    trades = Row(('TRADES',), Training('trades_cifar10'), _TRADES)
    title = f'The sensitivity of {symbol}: TRADES-SI on CIFAR-10 with ResNet18'
    return _table(name, title, (trades, *(row(value, paper) for value, paper in rows.items())), *notes)


# Table 5: a single run, then the worst of 5.
_PUBLISHED = {
    ('AT', 'RN-50'): Download('at_resnet50.pt', {'arch': 'resnet50', 'normalise': 'cifar10'}),
    ('TRADES', 'W-34-10'): Download('trades_wrn_34_10.pt', {'arch': 'wrn_34_10', 'normalise': 'none'}),
    ('Pre-training †', 'W-28-10'): Download(
        'pretraining_wrn_28_10.pt', {'arch': 'wrn_28_10', 'normalise': '2x-1'}
    ),
    ('RST †', 'W-28-10'): Download('rst_wrn_28_10.pt', {'arch': 'wrn_28_10', 'normalise': 'none'}),
    ('MART', 'RN-18'): Download(
        'mart_resnet18.pt', {'arch': 'resnet18', 'variant': 'standard', 'normalise': 'none'}
    ),
    ('MART †', 'W-28-10'): Download('mart_wrn_28_10.pt', {'arch': 'wrn_28_10', 'normalise': 'none'}),
    ('HYDRA †', 'W-28-10'): Download('hydra_wrn_28_10.pt', {'arch': 'wrn_28_10', 'normalise': 'none'}),
}
_TABLE5 = (
    (85.46, 56.64, 54.95, 57.47, 54.65, 56.10, 54.47, 56.95, 54.41),
    (84.92, 57.16, 55.45, 57.15, 55.27, 56.84, 55.20, 56.79, 55.02),
    (87.11, 59.60, 58.27, 60.39, 57.09, 59.19, 57.83, 59.95, 56.95),
    (89.69, 65.05, 63.09, 64.73, 62.34, 64.52, 62.74, 64.33, 62.18),
    (83.07, 55.41, 51.50, 53.42, 51.32, 55.06, 51.08, 52.79, 50.95),
    (87.50, 64.77, 61.04, 62.65, 60.60, 64.31, 60.47, 62.04, 60.32),
    (88.98, 62.84, 60.54, 62.41, 60.13, 62.34, 60.23, 61.89, 59.93),
)
_PGD_TITLES = {'PGD': 'pgd', 'PGDCW': 'cw', 'PGDLR': 'dlr', 'SI-PGD': 'sipgd'}


def _published(labels: tuple[str, ...], source: Download, paper: tuple[float, ...]) -> Row:
    """A row of Table 5. What the paper states as the natural accuracy is checked before the attacks."""
    flags = {**source.flags, 'stated_clean': f'{paper[0] / 100:.4f}'}
    return Row(labels, source._replace(flags=flags), (*paper, None))


# Table 6: CIFAR-10, then CIFAR-100; rows are PAIRS.
_TABLE6 = {
    'ResNet18': (
        ((85.57, 54.12, 53.15, 52.47, 48.49), (60.48, 31.11, 29.44, 29.37, 25.57)),
        ((83.03, 55.76, 52.93, 52.89, 48.15), (57.52, 31.94, 28.72, 29.68, 25.30)),
        ((84.15, 55.23, 52.67, 52.24, 50.06), (62.05, 31.39, 27.10, 26.68, 25.04)),
        ((84.05, 58.73, 53.56, 54.77, 50.60), (60.17, 33.54, 28.19, 29.66, 25.86)),
        ((84.25, 56.11, 53.26, 53.06, 50.30), (58.19, 31.16, 27.89, 27.61, 25.47)),
        ((85.70, 57.64, 53.06, 52.66, 49.30), (61.49, 32.46, 28.38, 28.62, 25.51)),
        ((80.99, 57.11, 52.38, 52.27, 48.71), (54.58, 33.37, 28.68, 28.54, 26.10)),
        ((81.46, 61.02, 52.49, 53.90, 49.09), (56.53, 35.25, 29.50, 31.02, 26.77)),
    ),
    'WideResNet-34-10': (
        ((85.60, 55.84, 54.78, 54.76, 51.02), (59.48, 32.34, 30.01, 29.63, 26.84)),
        ((85.69, 57.01, 55.37, 55.58, 51.48), (60.25, 32.65, 30.44, 31.51, 27.26)),
        ((86.36, 58.04, 56.32, 56.27, 52.35), (63.74, 33.85, 30.62, 30.16, 27.24)),
        ((86.53, 60.14, 56.40, 57.51, 53.22), (62.39, 35.07, 30.89, 31.90, 28.54)),
        ((87.31, 57.54, 55.73, 55.42, 52.49), (63.18, 32.13, 29.54, 29.18, 27.02)),
        ((86.04, 59.65, 55.74, 55.57, 52.73), (64.14, 32.89, 30.00, 30.11, 26.83)),
        ((84.41, 59.93, 55.55, 55.74, 52.23), (55.28, 34.59, 30.92, 30.84, 28.21)),
        ((85.30, 62.31, 56.17, 57.07, 52.01), (58.90, 36.47, 30.98, 32.92, 28.36)),
    ),
}
_TABLE7 = (
    (92.91, 57.99, 56.20, 55.39, 49.75),
    (92.34, 60.05, 57.08, 57.11, 51.19),
    (90.42, 61.28, 57.39, 56.90, 50.82),
    (89.66, 62.68, 57.93, 58.87, 52.13),
    (91.79, 61.42, 57.38, 56.88, 51.68),
    (90.02, 61.43, 57.49, 58.49, 52.56),
    (91.84, 62.45, 56.50, 55.54, 49.64),
    (90.09, 64.32, 58.01, 58.57, 51.96),
)
_TABLE8 = {
    ('RN-18', 'FreeAT'): (84.45, 47.69, 47.14, 47.31),
    ('RN-18', 'FreeAT-SI'): (84.22, 48.37, 46.97, 46.56),
    ('RN-18', 'GAT'): (80.49, 54.47, 50.47, 51.89),
    ('RN-18', 'GAT-SI'): (83.42, 56.01, 51.83, 52.13),
    ('PARN-18', 'RFGSM-AT'): (83.80, 49.41, 48.92, 48.85),
    ('PARN-18', 'RFGSM-AT-SI'): (82.85, 50.75, 49.69, 49.42),
    ('PARN-18', 'GradAlign'): (80.14, 49.42, 48.23, 48.12),
    ('PARN-18', 'GradAlign-SI'): (82.58, 50.51, 49.64, 49.35),
}
_TABLE9 = (
    (59.81, 57.85, 56.00, 0.0370, 53.91),
    (60.51, 58.29, 56.40, 0.0373, 54.43),
    (59.67, 57.67, 55.97, 0.0393, 54.95),
    (60.35, 58.38, 56.71, 0.0394, 54.25),
    (60.48, 58.27, 56.55, 0.0388, 54.79),
    (61.02, 58.62, 56.65, 0.0386, 55.39),
    (58.16, 56.20, 54.91, 0.0376, 53.42),
    (59.16, 56.90, 55.23, 0.0380, 53.88),
)
_TABLE10 = {
    'CIFAR-10': (
        (55.23, 52.67, 52.24, 50.06),
        (61.45, 52.08, 51.57, 49.86),
        (58.73, 53.56, 54.77, 50.60),
    ),
    'SVHN': (
        (61.28, 57.39, 56.90, 50.82),
        (67.32, 56.55, 57.53, 51.90),
        (62.68, 57.93, 58.87, 52.13),
    ),
    'CIFAR-100': (
        (31.39, 27.10, 26.68, 25.04),
        (31.70, 25.51, 29.34, 23.93),
        (33.54, 28.19, 29.66, 25.86),
    ),
}


def _table(
    name: str,
    title: str,
    rows: Iterable[Row],
    *notes: str,
    columns: tuple[Column, ...] = WHITE_BOX,
    evaluations: tuple[Evaluation, ...] = EVALUATED,
) -> Table:
    return Table(name, title, columns, tuple(rows), evaluations, (*notes, CHOSEN))


def _pairs(dataset: str, numbers: Iterable[tuple[float, ...]], network: str = '', *labels: str) -> list[Row]:
    """The rows of the multi-step defenses, each without and with SI, on one data set."""
    return [
        Row((*labels, method), Training(config_of(method, dataset), network), paper)
        for method, paper in zip(PAIRS, numbers, strict=True)
    ]


_LIST = (
    _sensitivity(
        '2', 's', 'defense.scale', 15.0, _SCALE,
        'The row TRADES has m = 0 and s = 0 in the paper, which is plain TRADES. SI-PGD has s = 15 against '
        'every row.',
    ),
    _sensitivity('3', 'm', 'defense.margin', 0.2, _MARGIN, 'The row m = 0 keeps the regulariser.'),
    _sensitivity(
        '4', 'beta', 'defense.weights.si_margin_ce', 0.2, _BETA,
        'The row beta = 0 keeps the SI attack, and is not plain TRADES.',
    ),
    Table(
        '5',
        'Attacks on published defenses: CIFAR-10, a single run and the worst of 5 restarts',
        (
            NATURAL,
            *(Column(title, attack, 'single_run') for title, attack in _PGD_TITLES.items()),
            *(Column(f'{title} ×5', attack) for title, attack in _PGD_TITLES.items()),
            Column('PGD at its best scale', 'pgd', 'best_scale', added=True),
        ),
        tuple(_published(*row, paper) for row, paper in zip(_PUBLISHED.items(), _TABLE5, strict=True)),
        (
            Evaluation(tuple(_PGD_TITLES.values()), restarts=5),
            *(Evaluation(('pgd',), logit_scale=scale) for scale in SCALES if scale != 1),
        ),
        (
            'docs/table5.md says where each file comes from. † additional data used for training.',
            'The best scale is the lowest accuracy of PGD, a single run, over 13 factors on the logits, half '
            'decades from 1e-3 to 1e3, on the same images; the paper lacks this column.',
        ),
    ),
    _table(
        '6',
        'Multi-step defenses under white-box attack: CIFAR-10 and CIFAR-100',
        (
            row
            for network, rows in _TABLE6.items()
            for dataset, numbers in zip(('CIFAR-10', 'CIFAR-100'), zip(*rows, strict=True), strict=True)
            for row in _pairs(dataset, numbers, NETWORKS[network], network, dataset)
        ),
    ),
    _table('7', 'Multi-step defenses under white-box attack: SVHN with ResNet18', _pairs('SVHN', _TABLE7)),
    _table(
        '8',
        'Single-step defenses under white-box attack: CIFAR-10',
        (
            Row(labels, Training(config_of(labels[1], 'CIFAR-10')), (*numbers, None, None))
            for labels, numbers in _TABLE8.items()
        ),
        'The paper lacks the columns AA and collapsed: the share of seeds in which accuracy under PGD on '
        'held-out images fell by more than 20 points between two epochs, or the guard against '
        'catastrophic overfitting ended the run.',
        columns=(
            NATURAL, PGD, CW, SIPGD, AA._replace(added=True),
            Column('collapsed', '', 'collapsed', added=True),
        ),
    ),
    _table(
        '9',
        'Black-box attacks: CIFAR-10 with ResNet18',
        _pairs('CIFAR-10', _TABLE9),
        'On the first 1,000 test images; the paper does not say on how many (--num_examples=10000 for '
        'all). RayS has 10,000 queries.',
        columns=(
            Column('SPSA 128', 'spsa-128'),
            Column('SPSA 256', 'spsa'),
            Column('SPSA 512', 'spsa-512'),
            Column('ADB', 'rays', 'distance'),
            Column('Rob.Acc', 'rays'),
        ),
        evaluations=(Evaluation(('spsa-128', 'spsa', 'spsa-512', 'rays'), num_examples=1000),),
    ),
    _table(
        '10',
        'SI and hypersphere embedding: TRADES with ResNet18',
        (
            Row((dataset, method), Training(config_of(method, dataset)), numbers)
            for dataset, rows in _TABLE10.items()
            for method, numbers in zip(('TRADES', 'TRADES-HE', 'TRADES-SI'), rows, strict=True)
        ),
        'PGD and AA attack the cosines of TRADES-HE as they are, without a scale.',
        columns=WHITE_BOX[1:],
    ),
)  # fmt: skip

PAPER_TABLES: dict[str, Table] = {table.name: table for table in _LIST}
