"""All fields of a config with their defaults, which are the recipe of sections 5.1.1 and 5.4 of Xu et al.

Units: `threat.eps` and the step sizes are fractions of the pixel range [0, 1], so 8/255 is 0.031373. The
step sizes are eps / 4 and follow an override of `threat.eps`. Schedule boundaries are fractions of `epochs`,
so that a shorter run keeps the shape of the schedule.

The comment behind a field, or above it, is what `train.py --help` and the page about configs say of it.
"""

from ml_collections import ConfigDict, config_dict

from si_jax import defenses, models
from si_jax.errors import InputError, unknown

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
