"""Recipes of the repositories of defenses, where they differ from the paper's.

Each function takes a row of `si_jax.defenses.DEFENSES` and makes the config with which its authors train it.
They did so on CIFAR-10, most of them; on another data set the numbers are the same.
"""

from ml_collections import ConfigDict

from si_jax.data import extra
from si_jax.training import initial
from si_jax.training.recipes.fields import paper

SINGLE_STEP = {  # to the network of its repository
    'freeat': 'resnet18',
    'gat': 'resnet18',
    'rfgsm': 'preact_resnet18',
    'gradalign': 'preact_resnet18',
}
NEWER_SINGLE_STEP = {
    'nfgsm': 'preact_resnet18',
    'elle': 'preact_resnet18',
    'ellea': 'preact_resnet18',
    'nuat': 'resnet18',
}


def single_step(name: str, *, si: bool, arch: str, dataset: str = 'cifar10') -> ConfigDict:
    """The config of a single-step defense on CIFAR-10: those of the paper's Table 8, and newer ones.

    Section 5.1.1 gives one recipe for every defense, but the paper's natural accuracies are those that the
    methods' own repositories publish: so GAT, RFGSM-AT and GradAlign have the recipes and networks of their
    repositories. FreeAT has that of section 5.1.1; its replays count as epochs. The newer ones, too, have the
    recipes and networks of their repositories, and the guard against catastrophic overfitting.

    Args:
        name: A row of `SINGLE_STEP` or of `NEWER_SINGLE_STEP`.
        si: Whether it is the scale-invariant version.
        arch: As for `paper`; of the published architecture it is the published variant.

    Raises:
        si_jax.errors.InputError: No such defense or architecture.
    """
    config = paper(name, si=si, dataset=dataset, arch=arch)
    config.optimiser.weight_decay = 5e-4
    if name == 'gat':  # GAMA-GAT:CIFAR10/GAT_cifar10.py; new rates from epochs 71 and 86, counted from 0
        config.epochs, config.batch_size = 100, 64
        config.schedule.peak, config.schedule.boundaries = 0.1, (71 / 100, 86 / 100)
        config.model.variant = {'resnet18': 'gat'}.get(arch, '')
    elif name == 'rfgsm':  # fast_adversarial:CIFAR10/train_fgsm.py; 83.8 % is that of 30 epochs, not 15
        config.epochs = 30
        config.schedule.kind, config.schedule.peak, config.schedule.peak_at = 'triangular', 0.2, 0.5
        config.optimiser.cycle_momentum = True
        config.overfitting.drop = 0.2
        config.model.variant = {'preact_resnet18': 'fast_at'}.get(arch, '')
        config.model.normalise = 'cifar10'
    elif name == 'gradalign':  # understanding-fast-adv-training:train.py; that code drops partial batches
        config.epochs = 30
        config.schedule.kind, config.schedule.peak, config.schedule.peak_at = 'triangular', 0.3, 0.4
        config.model.variant = {'preact_resnet18': 'gradalign'}.get(arch, '')
    elif name in NEWER_SINGLE_STEP:  # torch's CyclicLR step by step, whose momentum moves against the rate
        config.epochs = 100 if name == 'nuat' else 30
        config.schedule.kind, config.schedule.peak, config.schedule.peak_at = 'triangular', 0.2, 0.5
        config.optimiser.cycle_momentum = True
        config.overfitting.drop = 0.2
    if name == 'nfgsm':  # N-FGSM:train.py
        config.model.variant = {'preact_resnet18': 'fast_at'}.get(arch, '')
        config.model.normalise = 'cifar10'
    elif name in ('elle', 'ellea'):  # ELLE:scripts/run_elle_cifar10.sh, core/utils/train.py ('GradAlign')
        config.model.variant = {'preact_resnet18': 'bag_of_tricks'}.get(arch, '')
    elif name == 'nuat':  # NuAT:CIFAR10/NuAT_cifar10.py, NuAT_WA_cifar10.py
        config.batch_size = 64
        config.schedule.peak, config.schedule.peak_at = 0.1, 0.25
        config.model.variant = {'resnet18': 'gat'}.get(arch, '')
        # NuAT-WA's average of the whole state, from the first step on.
        config.average.kind, config.average.decay, config.average.start = 'ema', 0.9998, 0.0
        config.average.ramp, config.average.batch_stats = False, 'average'
    return config


def weights_perturbed(name: str, *, si: bool, arch: str, dataset: str = 'cifar10') -> ConfigDict:
    """AT or TRADES with adversarial weight perturbation (AWP) on CIFAR-10, as its authors' code trains it.

    200 epochs in batches of 128, a rate of 0.1 that falls to a tenth after half and after three quarters of
    them. Differences are named in the files of the configs.

    Args:
        name: `'at'` or `'trades'`.
        si: Whether it is the scale-invariant version; the weights climb its whole objective.
        arch: As for `paper`; of the published architecture it is the published variant.

    Raises:
        si_jax.errors.InputError: No such defense or architecture.

    Source: Wu et al. (2020), repository csdongxian/AWP, AT_AWP/train_cifar10.py,
        trades_AWP/train_trades_cifar.py.
    """
    config = paper(name, si=si, dataset=dataset, arch=arch)
    config.epochs = 200
    config.optimiser.weight_decay = 5e-4
    config.schedule.peak, config.schedule.boundaries = 0.1, (0.5, 0.75)
    config.model.variant = {'preact_resnet18': 'bag_of_tricks'}.get(arch, '')
    if name == 'at':
        config.awp.gamma = 0.01
        config.defense.attack_bn = 'train'
        config.model.normalise = 'cifar10'
    else:  # its epochs count from 1, and the tenth is the first with AWP
        config.awp.gamma, config.awp.start_epoch = 0.005, 9
        config.defense.start, config.defense.passes = 'gaussian', 'adv,nat,nat'
    return config


def with_generated_images(name: str, *, si: bool, arch: str, dataset: str = 'cifar10') -> ConfigDict:
    """TRADES with generated images in seven of ten places of a batch, as its authors train with 1M of them.

    400 epochs of 98 batches of 512, cross-entropy with smoothed labels and 5 times the KL divergence, an
    average of the weights, a rate that moves once an epoch. Differences are named in the file of the config.

    Args:
        name: `'trades'`.
        si: Whether it is the scale-invariant version.
        arch: As for `paper`.

    Raises:
        si_jax.errors.InputError: No such defense or architecture.

    Source: Wang et al. (2023), repository wzekai99/DM-Improves-AT, train-wa.py and gowal21uncovering/utils.
    """
    config = paper(name, si=si, dataset=dataset, arch=arch)
    config.epochs, config.batch_size = 400, 512
    config.data.extra, config.data.validation = extra.REQUIRED, 1024
    config.model.activation = 'silu'
    if arch != 'small_cnn':  # which has no batch normalisation
        config.model.bn_momentum, config.model.bn_first_step = 0.01, True
    config.defense.weights.kl, config.defense.smoothing = 5.0, 0.1
    config.defense.attack_bn = 'train'
    config.optimiser.weight_decay, config.optimiser.decay = 5e-4, 'no_bn'
    # Torch's OneCycleLR moves the momentum too, whatever the optimiser was given: .95 to .85 and back.
    config.optimiser.momentum, config.optimiser.cycle_momentum = 0.95, True
    config.optimiser.nesterov = True
    config.schedule.kind, config.schedule.every = 'one_cycle', 'epoch'
    config.schedule.peak, config.schedule.peak_at = 0.2, 0.025
    config.average.kind = 'ema'
    return config


def growing_ball(name: str, *, si: bool, arch: str, dataset: str = 'cifar10') -> ConfigDict:
    """ACAT, DAJAT or IKL as their authors' code trains them, in a ball that grows with every epoch.

    E = 200 epochs (ACAT 110) in batches of 128, the radius e/E of eps in epoch e (from 1), a rate that falls
    from 0.2 by a cosine with every epoch, perturbed weights from the tenth epoch on. Differences are named in
    the files of the configs.

    Args:
        name: `'trades'` for ACAT, `'dajat'` or `'dkl'`.
        si: Whether it is the scale-invariant version.
        dataset, arch: As for `paper`.

    Raises:
        si_jax.errors.InputError: No such defense or architecture.

    Source: Addepalli et al. (2022), repository val-iisc/DAJAT, train_DAJAT.py; Cui et al. (2023), repository
        jiequancui/DKL, train_dkl_cifar10.py and swa.py.
    """
    config = paper(name, si=si, dataset=dataset, arch=arch)
    config.epochs = 200
    config.ramp.eps = (0.0, 1.0)
    config.awp.gamma, config.awp.start_epoch = 0.005, 9  # its epochs count from 1
    config.optimiser.weight_decay = 5e-4
    config.schedule.kind, config.schedule.every, config.schedule.peak = 'cosine', 'epoch', 0.2
    config.average.batch_stats = 'average'
    if name == 'dkl':
        config.schedule.kind = 'cosine_dkl'
        config.average.kind, config.average.start = 'swa', 0.0
        return config
    config.average.kind, config.average.decay, config.average.start = 'ema', 0.9996, 0.75
    config.average.ramp = False
    if name == 'trades':  # the budget 'low' of that code
        config.epochs = 110
        config.defense.start, config.defense.weights.kl = 'gaussian', 11.0
        config.attack.steps, config.attack.step_size = 2, config.threat.get_ref('eps')
    return config


def helped(name: str, *, si: bool, arch: str, dataset: str = 'cifar10') -> ConfigDict:
    """HAT on CIFAR-10, or its helper, as the authors' code trains them.

    50 epochs in batches of 128, a rate that goes from 0.0084 to 0.21 in a quarter of them and then to 0.

    Args:
        name: `'hat'`, or `'standard'` for the helper.
        si: Whether it is the scale-invariant version.
        arch: As for `paper`.

    Raises:
        si_jax.errors.InputError: No such defense or architecture.

    Source: Rade and Moosavi-Dezfooli (2022), repository imrahulr/hat, train.py and core/utils/train.py.
    """
    config = paper(name, si=si, dataset=dataset, arch=arch)
    config.epochs = 50
    config.optimiser.weight_decay, config.optimiser.nesterov = 5e-4, True
    # Torch's OneCycleLR moves the momentum too.
    config.optimiser.momentum, config.optimiser.cycle_momentum = 0.95, True
    config.schedule.kind, config.schedule.peak, config.schedule.peak_at = 'one_cycle', 0.21, 0.25
    return config


def fine_tuned(name: str, *, si: bool, arch: str, dataset: str = 'cifar10') -> ConfigDict:
    """A trained network made robust in several norms on CIFAR-10, as E-AT's authors' code does it.

    20 epochs in batches of 128, a rate of 0.01 that falls to a tenth after each third of them, APGD in ten
    steps. No images are held out: accuracy in one norm would choose the weights that are best in that norm,
    and the last ones are the result.

    Args:
        name: `'eat'`.
        si: Whether it is the scale-invariant version.
        arch: That of the network that training goes on from.

    Raises:
        si_jax.errors.InputError: No such defense or architecture.

    Source: Croce and Hein (2022), repository fra31/robust-finetuning, train.py.
    """
    config = paper(name, si=si, dataset=dataset, arch=arch)
    config.epochs = 20
    config.init_from = initial.REQUIRED
    config.data.validation = 0
    config.optimiser.weight_decay = 5e-4
    config.schedule.boundaries = (1 / 3, 2 / 3)
    config.schedule.peak = 0.01
    return config
