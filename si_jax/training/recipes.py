"""The recipes: every run of `configs/` by name, what all of them share, and old configs completed.

`paper` is the recipe of sections 5.1.1 and 5.4 of Xu et al. A row of `RECIPES` names a defense, a data set
and an architecture, and has everything else from there. `recipe('tradessi_cifar10')` is the config of a row,
and `configs/tradessi_cifar10.py` is its file. On the command line the architecture follows the file, then
`si` for the scale-invariant version of a row that is not one, and any field can be set:

    python train.py --config=configs/tradessi_cifar10.py:wrn_34_10 --config.defense.weights.kl=5.0
    python train.py --config=configs/awp_cifar10.py:small_cnn,si

Units: `threat.eps` and the step sizes are fractions of the pixel range [0, 1], so 8/255 is 0.031373. The
step sizes are eps / 4 and follow an override of `threat.eps`. Schedule boundaries are fractions of `epochs`,
so that a shorter run keeps the shape of the schedule.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict, config_dict

from si_jax import defenses, models
from si_jax.data import extra
from si_jax.errors import InputError, unknown
from si_jax.training import initial

Row = TypeVar('Row')
# In the order in which they are shown.
SECTIONS = (
    'data', 'augment', 'model', 'defense', 'threat', 'attack', 'awp', 'ramp', 'optimiser', 'schedule',
    'average', 'overfitting', 'evaluation', 'checkpoint', 'logging',
)  # fmt: skip


def defense(name: str, *, si: bool = False, he: bool = False) -> ConfigDict:
    """The fields of a row of `si_jax.defenses.DEFENSES`, each as Table 1 and section 5.4 have it.

    Args:
        name: A row of the table; `'standard'` is training without an attack.
        si: Whether the attack ascends scaled cosines and the objective gets the margin regulariser.
        he: Whether the network's logits are cosines (hypersphere embedding).

    Raises:
        si_jax.errors.InputError: No such row, SI without an attack, or no such row with HE.
    """
    if name not in defenses.DEFENSES:
        raise unknown('defense', name, defenses.DEFENSES)
    row = defenses.DEFENSES[name]
    if si and he:
        raise InputError('SI and hypersphere embedding are alternatives: use si=False or he=False')
    if si:
        row = defenses.with_si(row, scale=15.0, margin=0.2, weight=0.2)
    if he:
        row = defenses.with_he(row, scale=15.0, margin=0.2)
    return ConfigDict(
        {
            'name': name,
            'si': si,
            'he': he,
            # What the attack maximises: '' for the row's own, or 'ce', 'kl', 'si', 'calibrated_ce'.
            'inner': '',
            'weights': {term: value.weight for term, value in row.outer.items()},
            'scale': 15.0,  # s
            'margin': 0.2,  # m, on the true class only
            # The paper's "random start" is uniform; the code of TRADES, MART and AT_HE has 'gaussian'.
            'start': row.start,
            'start_radius': row.start_radius,  # N-FGSM's k: of the start's noise, as a multiple of eps
            # Where steps may lead: 'ball' (of eps, and [0, 1]), 'pixels' ([0, 1] alone) or 'none' (anywhere).
            'bounds': row.bounds,
            'attack_bn': row.attack_bn,
            'passes': ','.join(row.passes),  # TRADES' own code: 'nat,adv,nat'
            'replays': row.replays,  # FreeAT's m
            'branches': row.branches,  # DAJAT's copies of each image after AutoAugment, beside the image
            # HAT's network trained without an attack: WORKDIR, zoo:NAME or a file of weights; '': one is
            # trained first by this recipe, its epochs included, in WORKDIR/helper of the run.
            'helper': '',
            # E-AT: threat models 'NORM:EPS', with commas between; each batch is attacked in one of these and
            # the one of the section threat.
            'others': ','.join(map(str, row.others)),
            'smoothing': 0.0,  # s of label smoothing, in the cross-entropies of the loss, not of the attack
            # Label smoothing spreads s over 'all' classes, the label's too (torch), or over the 'others'.
            'smoothing_over': 'all',
        }
    )


def paper(name: str, *, si: bool = False, he: bool = False, dataset: str, arch: str) -> ConfigDict:
    """The config of one row of the paper's Tables 6, 7 and 10.

    Wide ResNets have a schedule of their own (90 epochs from 0.1, one drop, weight decay 7e-4); every other
    architecture takes that of ResNet-18. "From the 75-th epoch" counts from 1, so 74 epochs run at the first
    rate.

    Args:
        name: The defense, a row of `si_jax.defenses.DEFENSES`.
        si: Whether it is the scale-invariant version.
        he: Whether it is the version with hypersphere embedding.
        dataset: `'cifar10'`, `'cifar100'`, `'svhn'`, `'digits'`, or any name that `si_jax.data.load` takes.
        arch: A name that `si_jax.models.create` knows, for example `'resnet18'` or `'wrn_34_10'`.

    Raises:
        si_jax.errors.InputError: No such defense or architecture.
    """
    models.create(arch, num_classes=10)  # refuses an unknown name before anything is read or computed
    wide = arch.startswith('wrn_')

    config = ConfigDict()
    config.seed = 0
    config.epochs = 90 if wide else 120
    config.batch_size = 128
    # Ends the run if the best held-out robust accuracy has not risen for so many epochs; 0: never.
    config.patience = 0
    # Weights to start from: WORKDIR, zoo:NAME, FILE.npz, or PyTorch's FILE.pt, FILE.pth, FILE.safetensors;
    # hf:OWNER/NAME@REVISION/FILE downloads one of these; '': random ones.
    config.init_from = ''
    for section in SECTIONS:
        config[section] = ConfigDict()

    config.data.name = dataset
    # None: the default folder of tensorflow-datasets. For npz: and folder: it replaces that in the name.
    config.data.dir = config_dict.placeholder(str)
    config.data.preprocessing = ''  # of folder: and tfds: images of several sizes, such as 'Res256Crop224'
    config.data.validation = 1000  # held-out training images, on which the best checkpoint is chosen
    config.data.split_seed = 0
    config.data.limit = 0  # N: only the first N images that the validation split leaves; 0: all
    config.data.balanced = False  # True: an epoch draws every class equally often, as many images as before
    # CutMix: N mixtures of each image with others of its batch, and a step sees N times the batch; 0: none.
    config.data.cutmix = 0
    # Extra images, generated or with pseudo-labels: an npz with arrays `image` and `label`, or several with
    # commas between; '': none.
    config.data.extra = ''
    config.data.extra_share = 0.7  # of a batch, how many are extra images; an epoch is as long as without
    config.data.extra_draws = 'uniform'  # with replacement, or 'passes': each once before any comes again
    # Where the data are: 'never' streamed, all on the device; 'always', each batch is handed over; 'auto', on
    # the device if they take at most half of its memory. The batches are the same.
    config.data.stream = 'auto'
    # Processes that read and decode streamed images (pip install grain); 0: a thread of this process does.
    config.data.workers = 0
    config.data.class_weights = ()  # one positive weight for each class, of its images in the loss; (): equal

    # Written down by train.py, for sets that the library does not have: what evaluate.py must know of them.
    config.data.image_shape = ()
    config.data.num_classes = 0  # likewise
    config.data.code = ''  # likewise: the Python file that registered the set
    config.data.code_digest = ''  # likewise: its SHA-256

    # Padding of the random crop, 0 for none; None: the data set's own.
    config.augment.crop = config_dict.placeholder(int)
    # Whether every second image is mirrored, on average; None: the data set's own.
    config.augment.flip = config_dict.placeholder(bool)

    config.model.arch = arch
    config.model.width = 0  # 0: the architecture's own
    config.model.variant = ''  # '': the architecture's default
    config.model.normalise = 'none'  # MART and TRADES feed [0, 1] pixels
    config.model.dtype = 'float32'  # of the convolutions; parameters, statistics and losses stay float32
    config.model.sync_bn = True  # False: statistics per device, as torch's DataParallel
    config.model.activation = 'relu'  # or 'silu', 'softplus', in place of every ReLU
    config.model.bn_momentum = 0.1  # weight of a batch in the running statistics, as torch counts it
    # Whether batch normalisation has a second set of statistics and affine parameters, for branches.
    config.model.bn_branches = defenses.DEFENSES[name].branches > 0
    config.model.bn_first_step = False  # True: the first step sets the running statistics to its batch's

    config.defense = defense(name, si=si, he=he)

    config.threat.norm = 'linf'  # or 'l2', or 'l1'
    config.threat.eps = 8 / 255

    row = defenses.DEFENSES[name]
    config.attack.steps = row.steps
    config.attack.step_size = config.threat.get_ref('eps') * row.step_size

    # Adversarial weight perturbation, as a share of each kernel's length; 0: none. AT takes 0.01, TRADES
    # 0.005.
    config.awp.gamma = 0.0
    config.awp.start_epoch = 0  # the first epoch with it, counted from 0

    # Linear ramps (a, b): from a times the value to all of it over the first share b of the run; (): none.
    config.ramp.eps = ()  # (a, b): of the radius in training, and of the step size with it; DAJAT (0, 1)
    config.ramp.step_size = ()  # (a, b): of the step size alone
    config.ramp.steps = ()  # (a, b): of the number of attack steps, each number equally long
    config.ramp.weights = ()  # (a, b): of the weights of `ramp.terms`
    config.ramp.terms = ''  # names of terms of the defense, separated by commas
    config.ramp.every = 'epoch'  # or 'step': when they move

    # torch's SGD: decay is added before the momentum, and the learning rate comes last.
    config.optimiser.momentum = 0.9
    config.optimiser.nesterov = False
    config.optimiser.weight_decay = 7e-4 if wide else 5e-4
    # What decays: 'no_bn' is all but batch normalisation, 'no_bn_bias' neither that nor any bias.
    config.optimiser.decay = 'all'
    config.optimiser.clip_norm = 0.0  # 0: no clipping
    # With a triangular or one-cycle schedule: the momentum falls by 0.1 up to the peak, and comes back.
    config.optimiser.cycle_momentum = False

    # 'steps' falls at boundaries; 'triangular' is 0 at both ends, highest at `peak_at` of the run;
    # 'one_cycle' is torch's OneCycleLR, its pct_start being `peak_at`; 'cosine' falls to 0 after `warmup`;
    # 'cosine_dkl' ends a little above 0.
    config.schedule.kind = 'steps'
    config.schedule.peak = 0.1 if wide else 0.01
    config.schedule.factor = 0.1
    config.schedule.boundaries = (74 / 90,) if wide else (74 / 120, 89 / 120, 99 / 120)
    config.schedule.peak_at = 0.5
    config.schedule.warmup = 0.0  # of a cosine: the share of the run in which the rate rises from 0
    config.schedule.every = 'step'  # or 'epoch': when one_cycle and cosines move

    # The weights that are evaluated: '' those of training, 'ema' their average over steps, 'swa' over epochs.
    config.average.kind = ''
    config.average.decay = 0.995  # of 'ema': the weight of the average before, in each step
    config.average.tau = 0.9  # of 'swa': the same, at the end of each epoch
    config.average.start = 0.025  # the share of the run in which the average is a copy; DAJAT 0.75
    config.average.ramp = True  # of 'ema': the decay is at most (1 + d) / (10 + d), d steps after the start
    # Batch normalisation of the average: 'live' the statistics of training, 'average' averaged too,
    # 'recompute' anew after each epoch by a pass over its batches, without an attack.
    config.average.batch_stats = 'live'

    # Ends the run if PGD-5 accuracy on held-out images falls by more than this in an epoch, surely; 0: never.
    config.overfitting.drop = 0.0

    config.evaluation.every_epochs = 1
    config.evaluation.steps = 20
    config.evaluation.step_size = config.threat.get_ref('eps') / 4
    config.evaluation.batch_size = 0  # 0: chosen for the device

    config.checkpoint.every_steps = 0  # 0: at the end of epochs only
    config.checkpoint.every_minutes = 10.0
    config.checkpoint.keep_last = 2

    config.logging.every_steps = 50
    config.logging.tensorboard = True
    # Where the numbers of each epoch go too: 'wandb', 'trackio' or FILE.py:NAME, several with commas between.
    config.logging.sinks = ''
    return config


def single_step(name: str, *, si: bool, arch: str) -> ConfigDict:
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
    config = paper(name, si=si, dataset='cifar10', arch=arch)
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


def weights_perturbed(name: str, *, si: bool, arch: str) -> ConfigDict:
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
    config = paper(name, si=si, dataset='cifar10', arch=arch)
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


def with_generated_images(name: str, *, si: bool, arch: str) -> ConfigDict:
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
    config = paper(name, si=si, dataset='cifar10', arch=arch)
    config.epochs, config.batch_size = 400, 512
    config.data.extra, config.data.validation = extra.REQUIRED, 1024
    config.model.activation, config.model.bn_momentum, config.model.bn_first_step = 'silu', 0.01, True
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


def growing_ball(name: str, *, si: bool, dataset: str, arch: str) -> ConfigDict:
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


def helped(name: str, *, si: bool, arch: str) -> ConfigDict:
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
    config = paper(name, si=si, dataset='cifar10', arch=arch)
    config.epochs = 50
    config.optimiser.weight_decay, config.optimiser.nesterov = 5e-4, True
    # Torch's OneCycleLR moves the momentum too.
    config.optimiser.momentum, config.optimiser.cycle_momentum = 0.95, True
    config.schedule.kind, config.schedule.peak, config.schedule.peak_at = 'one_cycle', 0.21, 0.25
    return config


def fine_tuned(name: str, *, si: bool, arch: str) -> ConfigDict:
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
    config = paper(name, si=si, dataset='cifar10', arch=arch)
    config.epochs = 20
    config.init_from = initial.REQUIRED
    config.data.validation = 0
    config.optimiser.weight_decay = 5e-4
    config.schedule.boundaries = (1 / 3, 2 / 3)
    config.schedule.peak = 0.01
    return config


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A run with the recipe of the paper, or of a single-step defense's repository.

    Attributes:
        defense: A row of `si_jax.defenses.DEFENSES`.
        dataset: As for `paper`.
        kind: 'si', 'he' or '' for the defense as it was published.
        arch: The architecture, if no other is asked for.
        inner: What the attack maximises; '' for the defense's own.
        awp: Whether it is the recipe with perturbed weights.
        generated: Whether it is the recipe with generated images.
        growing: Whether it is a recipe whose ball grows.
        helped: Whether it is the recipe of HAT, or of its helper.
    """

    defense: str
    dataset: str = 'cifar10'
    kind: str = ''
    arch: str = 'resnet18'
    inner: str = ''
    awp: bool = False
    generated: bool = False
    growing: bool = False
    helped: bool = False

    def __call__(self, options: str | None = None) -> ConfigDict:
        """The config, with what follows the colon: ARCH, 'si', or 'ARCH,si'."""
        name, si = _options(options)
        arch, si, he = name or self.arch, si or self.kind == 'si', self.kind == 'he'
        if self.awp:
            return weights_perturbed(self.defense, si=si, arch=arch)
        if self.generated:
            return with_generated_images(self.defense, si=si, arch=arch)
        if self.growing:
            return growing_ball(self.defense, si=si, dataset=self.dataset, arch=arch)
        if self.helped:
            return helped(self.defense, si=si, arch=arch)
        if self.defense in FINE_TUNED:
            return fine_tuned(self.defense, si=si, arch=arch)
        if self.defense in SINGLE_STEP | NEWER_SINGLE_STEP:
            return single_step(self.defense, si=si, arch=arch)
        config = paper(self.defense, si=si, he=he, dataset=self.dataset, arch=arch)
        config.defense.inner = self.inner
        return config


def _options(text: str | None) -> tuple[str, bool]:
    """What follows a config file's colon: an architecture (or a row), '' for none, and whether SI is on."""
    parts = [part.strip() for part in (text or '').split(',')]
    names = [part for part in parts if part not in ('', 'si')]
    if len(names) > 1:
        raise InputError(
            f'{text!r} has {len(names)} names, {" and ".join(names)}: give one, then si or nothing'
        )
    return ''.join(names), 'si' in parts


def quickstart(options: str | None = None) -> ConfigDict:
    """TRADES-SI with the paper's weights on a small net; the learning rate suits a few hundred steps."""
    arch, _ = _options(options)  # SI is on as it is
    return _on_digits('trades', si=True, arch=arch or 'small_cnn')


def _on_digits(name: str, *, si: bool, arch: str = 'small_cnn') -> ConfigDict:
    config = paper(name, si=si, dataset='digits', arch=arch)
    config.epochs = 40
    config.batch_size = 32
    config.data.validation = 200
    config.threat.eps = 0.2
    config.schedule.peak = 0.03
    return config


MULTI_STEP = ('at', 'trades', 'alp', 'mart')
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
FINE_TUNED = ('eat',)
# The rows of the study on CIFAR-10 that a CPU can pay for, and of those on the digits: name and si.
NARROW_ROWS = {f'{name}{"si" * si}': (name, si) for name in MULTI_STEP for si in (False, True)}
DIGITS_ROWS = NARROW_ROWS | {
    f'{name}{"si" * si}': (name, si) for name in ('nfgsm', 'nuat') for si in (False, True)
}


def digits(row: str | None = None) -> ConfigDict:
    """A defense on the digits: the quickstart with the defense and the attack of this row."""
    name, si = _study_row(row, DIGITS_ROWS)
    return _on_digits(name, si=si)


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
    name, si, inner = _study_row(row, EVIDENCE_ROWS)
    config = paper(name, si=si, dataset='cifar10', arch='resnet18')
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
    name, si = _study_row(row, NARROW_ROWS)
    config = paper(name, si=si, dataset='cifar10', arch='resnet18')
    config.model.width = 8
    config.data.limit = 10_000
    config.data.validation = 100
    config.epochs = 1
    config.batch_size = 32
    config.attack.steps = 5
    config.schedule.peak = 0.05
    return config


def _study_row(options: str | None, rows: Mapping[str, Row]) -> Row:
    name, si = _options(options)
    row = f'{name.removesuffix("si")}si' if name and si else name or 'tradessi'
    if row not in rows:
        raise unknown('row', row, rows)
    return rows[row]


RECIPES: dict[str, Callable[..., ConfigDict]] = {
    **{
        f'{name}{kind}_{dataset}': Recipe(name, dataset, kind)
        for name in MULTI_STEP
        for kind in ('', 'si', 'he')
        for dataset in ('cifar10', 'cifar100', 'svhn')
        if not (name == 'mart' and kind == 'he')  # its losses have no such form
    },
    **{
        f'{name}{kind}_cifar10': Recipe(name, kind=kind, arch=arch)
        for name, arch in SINGLE_STEP.items()
        for kind in ('', 'si')
    },
    # Their SI versions have no file of their own: si follows the colon.
    **{f'{name}_cifar10': Recipe(name, arch=arch) for name, arch in NEWER_SINGLE_STEP.items()},
    **{f'{name}_cifar10': Recipe(name) for name in FINE_TUNED},
    'awp_cifar10': Recipe('at', arch='preact_resnet18', awp=True),
    'tradesawp_cifar10': Recipe('trades', arch='preact_resnet18', awp=True),
    'wang2023_cifar10': Recipe('trades', arch='wrn_28_10', generated=True),
    'acat_cifar10': Recipe('trades', growing=True),
    'dajat_cifar10': Recipe('dajat', growing=True),
    'dkl_cifar10': Recipe('dkl', arch='wrn_34_10', growing=True),
    'dkl_cifar100': Recipe('dkl', 'cifar100', arch='wrn_34_10', growing=True),
    'hat_cifar10': Recipe('hat', helped=True),
    'standard_cifar10': Recipe('standard', helped=True),
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


def plain(config: ConfigDict) -> dict[str, Any]:
    """A config as config.json holds it: references resolved, JSON's types."""
    resolved: dict[str, Any] = json.loads(json.dumps(config.copy_and_resolve_references().to_dict()))
    return resolved


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that was stored, with today's default for every field that it lacks.

    A version that adds a field gives it a default which leaves runs as they were. So a run of before that
    version has that value, and everything that reads a stored config reads it through this function. What is
    of another kind than expected stays as it is: to refuse it is for the reader.
    """
    stored = config.get('defense')
    # A defense that is registered in the file of its config may not be known here: its fields are stored.
    name = stored.get('name') if isinstance(stored, Mapping) else None
    row = name if isinstance(name, str) and name in defenses.DEFENSES else 'standard'
    defaults = paper(row, dataset='digits', arch='resnet18')
    # Terms belong to the defense: a field `defense.weights.TERM` is not one that a version adds.
    del defaults.defense['weights']
    return _filled(config, plain(defaults))


def _filled(stored: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `stored`, and those of `defaults` that it lacks, section by section."""
    both = {
        name: _filled(value, defaults[name])
        for name, value in stored.items()
        if isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping)
    }
    return {**stored, **both, **{name: value for name, value in defaults.items() if name not in stored}}
