"""Recipes of our own: the quickstart, and the rows of the studies of docs/study.md."""

from collections.abc import Mapping
from typing import TypeVar

from ml_collections import ConfigDict

from si_jax import models
from si_jax.errors import InputError, unknown
from si_jax.training.recipes.fields import paper
from si_jax.training.recipes.options import read

Row = TypeVar('Row')
MULTI_STEP = ('at', 'trades', 'alp', 'mart')


def quickstart(options: str | None = None) -> ConfigDict:
    """TRADES-SI with the paper's weights on a small net; the learning rate suits a few hundred steps."""
    arch, _ = read(options)  # SI is on as it is
    return _on_digits('trades', si=True, arch=arch or 'small_cnn')


def _on_digits(name: str, *, si: bool, arch: str) -> ConfigDict:
    config = paper(name, si=si, dataset='digits', arch=arch)
    config.epochs = 40
    config.batch_size = 32
    config.data.validation = 200
    config.threat.eps = 0.2
    config.schedule.peak = 0.03
    return config


# The rows of the study on CIFAR-10 that a CPU can pay for, and of those on the digits: name and si.
NARROW_ROWS = {f'{name}{"si" * si}': (name, si) for name in MULTI_STEP for si in (False, True)}
DIGITS_ROWS = NARROW_ROWS | {
    f'{name}{"si" * si}': (name, si) for name in ('nfgsm', 'nuat') for si in (False, True)
}


def digits(row: str | None = None) -> ConfigDict:
    """A defense on the digits: the quickstart with the defense and the attack of this row."""
    (name, si), arch = _study_row(row, DIGITS_ROWS)
    return _on_digits(name, si=si, arch=arch or 'small_cnn')


# The rows of the study on all of CIFAR-10: name, si, and what the attack maximises in place of the row's own.
EVIDENCE_ROWS = {
    'trades': ('trades', False, ''),
    'tradessi': ('trades', True, ''),
    'tradesreg': ('trades', True, 'kl'),  # the regulariser alone
    'tradesatt': ('trades', False, 'si'),  # the attack alone
    'tradescal': ('trades', False, 'calibrated_ce'),
    'at': ('at', False, ''),
    'atsi': ('at', True, ''),
    'nfgsm': ('nfgsm', False, ''),
    'nfgsmsi': ('nfgsm', True, ''),
}


def evidence(row: str | None = None) -> ConfigDict:
    """A defense on all of CIFAR-10 with a narrow ResNet-18, a short run: see docs/study.md."""
    (name, si, inner), arch = _study_row(row, EVIDENCE_ROWS)
    config = paper(name, si=si, dataset='cifar10', arch=arch or 'resnet18')
    config.defense.inner = inner
    config.model.width = 8
    config.epochs, config.batch_size = (5 if name == 'nfgsm' else 2), 64
    if name != 'nfgsm':
        config.attack.steps = 5
    config.optimiser.weight_decay = 5e-4
    config.schedule.kind, config.schedule.peak, config.schedule.warmup = 'cosine', 0.1, 0.1
    config.average.kind = 'ema'
    return config


def narrow(row: str | None = None) -> ConfigDict:
    """A multi-step defense on a part of CIFAR-10 with a narrow ResNet-18, for one epoch."""
    (name, si), arch = _study_row(row, NARROW_ROWS)
    config = paper(name, si=si, dataset='cifar10', arch=arch or 'resnet18')
    config.model.width = 8
    config.data.limit = 10_000
    config.data.validation = 100
    config.epochs = 1
    config.batch_size = 32
    config.attack.steps = 5
    config.schedule.peak = 0.05
    return config


def _study_row(options: str | None, rows: Mapping[str, Row]) -> tuple[Row, str]:
    """The row that follows the colon, and the architecture, '' for the study's own: `:at,wrn_28_10,si`."""
    parts = [part.strip() for part in (options or '').split(',')]
    known = (*models.ARCHITECTURES, 'wrn_')
    archs = [part for part in parts if part not in rows and part.startswith(known)]
    name, si = read(','.join(part for part in parts if part not in archs))
    if len(archs) > 1:
        raise InputError(f'{options!r} names {len(archs)} architectures, {" and ".join(archs)}: give one')
    row = f'{name.removesuffix("si")}si' if name and si else name or 'tradessi'
    if row not in rows:
        raise unknown('row', row, rows)
    return rows[row], ''.join(archs)
