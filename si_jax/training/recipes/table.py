"""The table of recipes: a row names a defense, a data set and an architecture, and how its config is made."""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict

from si_jax.errors import unknown
from si_jax.training.recipes.authors import (
    NEWER_SINGLE_STEP,
    SINGLE_STEP,
    fine_tuned,
    growing_ball,
    helped,
    single_step,
    weights_perturbed,
    with_generated_images,
)
from si_jax.training.recipes.fields import paper
from si_jax.training.recipes.options import read
from si_jax.training.recipes.studies import MULTI_STEP, digits, evidence, narrow, quickstart


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A run of `configs/`.

    Attributes:
        defense: A row of `si_jax.defenses.DEFENSES`.
        dataset: As for `paper`.
        kind: 'si', 'he' or '' for the defense as it was published.
        arch: The architecture, if no other is asked for.
        inner: What the attack maximises; '' for the defense's own.
        make: The function that makes the config: the paper's recipe, or that of the defense's authors.
    """

    defense: str
    dataset: str = 'cifar10'
    kind: str = ''
    arch: str = 'resnet18'
    inner: str = ''
    make: Callable[..., ConfigDict] = paper

    def __call__(self, options: str | None = None) -> ConfigDict:
        """The config, with what follows the colon: ARCH, 'si', or 'ARCH,si'."""
        arch, si = read(options)
        kind = {'he': True} if self.kind == 'he' else {}  # which the paper's recipe alone has
        config = self.make(
            self.defense,
            si=si or self.kind == 'si',
            dataset=self.dataset,
            arch=arch or self.arch,
            **kind,
        )
        config.defense.inner = self.inner
        return config


RECIPES: dict[str, Callable[..., ConfigDict]] = {
    **{
        f'{name}{kind}_{dataset}': Recipe(name, dataset, kind)
        for name in MULTI_STEP
        for kind in ('', 'si', 'he')
        for dataset in ('cifar10', 'cifar100', 'svhn')
        if not (name == 'mart' and kind == 'he')  # its losses have no such form
    },
    **{
        f'{name}{kind}_cifar10': Recipe(name, kind=kind, arch=arch, make=single_step)
        for name, arch in SINGLE_STEP.items()
        for kind in ('', 'si')
    },
    # Their SI versions have no file of their own: si follows the colon.
    **{
        f'{name}_cifar10': Recipe(name, arch=arch, make=single_step)
        for name, arch in NEWER_SINGLE_STEP.items()
    },
    'eat_cifar10': Recipe('eat', make=fine_tuned),
    'awp_cifar10': Recipe('at', arch='preact_resnet18', make=weights_perturbed),
    'tradesawp_cifar10': Recipe('trades', arch='preact_resnet18', make=weights_perturbed),
    'wang2023_cifar10': Recipe('trades', arch='wrn_28_10', make=with_generated_images),
    'acat_cifar10': Recipe('trades', make=growing_ball),
    'dajat_cifar10': Recipe('dajat', make=growing_ball),
    'dkl_cifar10': Recipe('dkl', arch='wrn_34_10', make=growing_ball),
    'dkl_cifar100': Recipe('dkl', 'cifar100', arch='wrn_34_10', make=growing_ball),
    'hat_cifar10': Recipe('hat', make=helped),
    'standard_cifar10': Recipe('standard', make=helped),
    # TRADES-SI changes attack and objective at once; these change one of the two.
    'tradesce_cifar10': Recipe('trades', inner='ce'),
    'tradescal_cifar10': Recipe('trades', inner='calibrated_ce'),
    'tradesreg_cifar10': Recipe('trades', kind='si', inner='kl'),
    'quickstart': quickstart,
    'digits': digits,
    'narrow': narrow,
    'evidence': evidence,
}


def recipe(name: str, options: str | None = None) -> ConfigDict:
    """The config of a row of `RECIPES`.

    Args:
        name: The row.
        options: What follows the colon of its file: an architecture in place of the row's own (for a study
            its row: one of `DIGITS_ROWS` and so on), 'si' for its scale-invariant version, or both with a
            comma between.

    Raises:
        si_jax.errors.InputError: There is no such row, architecture or defense.
    """
    if name not in RECIPES:
        raise unknown('recipe', name, RECIPES)
    return RECIPES[name](options)
