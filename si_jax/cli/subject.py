"""What evaluate.py is about: its network and images, as flags name them and as they are read."""

import dataclasses
import hashlib
import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from si_jax import data, models
from si_jax.attacks.pgd import Attack
from si_jax.auditing.report import Audit
from si_jax.auditing.verdicts import WARN, Check
from si_jax.cli import outputs
from si_jax.cli.selection import select
from si_jax.errors import InputError
from si_jax.evaluation import gates, sanity
from si_jax.evaluation.classifier import with_logit_scale
from si_jax.evaluation.intervals import wilson
from si_jax.evaluation.pixels import Pixels
from si_jax.evaluation.result import Result
from si_jax.interop.jax_networks import is_equinox_module
from si_jax.interop.loading import is_torch_module, load_torch_checkpoint, load_torch_module
from si_jax.interop.torch_weights import accuracy_hint
from si_jax.runtime.modules import import_file, unended
from si_jax.runtime.terminal import Flag, fraction
from si_jax.storage import hub
from si_jax.threat import LINF_EPS, Threat
from si_jax.zoo.entries import PREFIX
from si_jax.zoo.load import SUFFIXES, is_file_or_zoo, load_model, measured_or_last
from si_jax.zoo.weights import sha256

Measured = TypeVar('Measured', Audit, Result)


def radii(text: str) -> float | tuple[float, ...]:
    """One radius, or several with commas between."""
    found = tuple(fraction(part) for part in text.split(','))
    return found if len(found) > 1 else found[0]


# The flags of what is evaluated; `Subject` has a field for each.
NETWORK = {
    'workdir': Flag('FOLDER', 'of a run of train.py'),
    'model': Flag(
        'FILE.py:FUNCTION',
        'a function that returns a classifier or nn.Module; or zoo:NAME, or a file of weights FILE.npz, '
        'FILE.safetensors or hf:OWNER/NAME@REVISION/FILE',
    ),
    'torch_checkpoint': Flag(
        'FILE', 'PyTorch weights, of torch.save or safetensors; or hf:OWNER/NAME@REVISION/FILE'
    ),
    'checkpoint': Flag('WHICH', 'of --workdir: best, last or a step', default='best'),
    'weights': Flag('WHICH', 'of --workdir, if it averaged its weights: average or live (default: average)'),
    'arch': Flag(
        'NAME', 'of --torch_checkpoint: resnet18, resnet50, preact_resnet18, wrn_<depth>_<width>, small_cnn'
    ),
    'variant': Flag('NAME', 'of --arch, where two have the same names (the error lists them)'),
    'normalise': Flag(
        'NAME',
        'what its authors do to images: none, cifar10, imagenet or 2x-1 (default: none)',
    ),
    'stated_clean': Flag(
        'FRACTION', 'the clean accuracy that they state: the result warns if this one is far below', fraction
    ),
    'logit_scale': Flag(
        'FACTOR',
        'multiply the logits: the decision stays, what PGD maximises does not (default: 1)',
        fraction,
        1.0,
    ),
}
IMAGES = {
    'dataset': Flag(
        'NAME',
        'the test split of cifar10, cifar100, svhn or digits, of npz:FOLDER, folder:FOLDER or tfds:NAME, '
        "or of what FILE.py:NAME registers (docs/data.md; default: the run's)",
    ),
    'data_dir': Flag('FOLDER', 'with <name>_test.npz, or data_dir of tensorflow-datasets (default: its own)'),
    'preprocessing': Flag(
        'NAME', "of images of several sizes, such as Res256Crop224 (default: the run's, or none)"
    ),
    'num_examples': Flag('N', 'only N images (default: all, 200 with --audit)', int),
    'sample': Flag('WHICH', 'of --num_examples: the first, or random ones', default='first'),
    'sample_seed': Flag('N', 'of --sample=random', int, 0),
    'images': Flag('FILE.txt', 'a list of images, one a line: their numbers, or class/file'),
    'class_map': Flag('FILE.json', 'class (its name or number) to the index of an output of the network'),
    'eps': Flag(
        'EPS[,EPS,...]',
        "radius in the pixel range [0, 1], or several, 0 for no attack (default: the run's, or 8/255)",
        radii,
    ),
    'norm': Flag(None, "linf, l2 or l1, with --smallest l0 too (default: the run's, or linf)"),
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated: the values of the flags `NETWORK` and `IMAGES`, whose help says what they mean."""

    workdir: str | None
    model: str | None
    torch_checkpoint: str | None
    checkpoint: str
    weights: str | None
    arch: str | None
    variant: str | None
    normalise: str | None
    stated_clean: float | None
    logit_scale: float
    dataset: str | None
    data_dir: str | None
    preprocessing: str | None
    num_examples: int | None
    sample: str
    sample_seed: int
    images: str | None
    class_map: str | None
    eps: float | tuple[float, ...] | None
    norm: str | None

    @classmethod
    def take(cls, arguments: dict[str, Any]) -> 'Subject':
        """Takes its fields out of parsed flags, and leaves the others."""
        return cls(**{name: arguments.pop(name) for name in (*NETWORK, *IMAGES)})

    def selection(self) -> dict[str, Any]:
        """What `selection.select` takes."""
        names = 'num_examples', 'images', 'sample', 'sample_seed', 'class_map'
        return {name: getattr(self, name) for name in names}

    def reads(self) -> list[str | None]:
        """The files and folders that it names."""
        _, _, place = (self.dataset or '').partition(':')
        files = [
            self.workdir,
            self.torch_checkpoint,
            self.data_dir,
            place or None,
            self.images,
            self.class_map,
        ]
        return [*files, *outputs.of_model(self.model)]


class Loaded(NamedTuple):
    """A subject that was read: its network, with images and their labels."""

    classifier: Any
    images: Pixels  # [N, H, W, C], in [0, 1], of the test split
    labels: np.ndarray  # [N]
    indices: np.ndarray | None  # [N], the numbers of the images; None for the first ones
    selected: dict[str, Any]  # how they were chosen, in JSON's types; {} for the first ones
    dataset: str
    threat: Threat  # the ball that was asked for, or that of the run
    about: dict[str, Any]  # where the network came from, in JSON's types
    stem: str  # how the files of its results begin
    folder: Path  # where they go, unless said otherwise
    hint: str  # what to try if it classifies clean images badly; '' if nothing can be said
    stated_clean: float | None  # the clean accuracy that its authors state
    classes: tuple[str, ...]  # their names, () if the data set has none
    num_classes: int | None  # how many classes the data set has; None if its labels are mapped to outputs
    warnings: list[str]  # what speaks against the images
    place: dict[str, Any]  # where the data set was looked for, if that was said

    def path(self, output: str | None, name: str, settings: dict[str, Any]) -> Path:
        """The file of a result; unless one is given, other settings have another."""
        choice = {'dataset': self.dataset, 'eps': self.threat.eps, 'norm': self.threat.norm, **settings}
        # Runs have their own folders, and the stem has their checkpoint.
        named = ('logit_scale',) if 'workdir' in self.about else tuple(self.about)
        choice |= {key: self.about[key] for key in named if key in self.about} | self.selected | self.place
        digest = hashlib.sha256(json.dumps(choice, sort_keys=True).encode()).hexdigest()[:8]
        return Path(output) if output else self.folder / f'{self.stem}-{name}-{digest}.json'

    def described(self, measured: dict[str, Any]) -> dict[str, Any]:
        """What a result says of its images, with the names of the data set and its classes."""
        names = {'class_names': list(self.classes)} if self.classes else {}
        return {'name': self.dataset, 'split': 'test', **self.selected, **measured, **names}

    def doubts(self, measured: dict[str, Any]) -> list[str]:
        """What speaks against the images of a result, by what it says of them."""
        found = list(self.warnings)
        if self.num_classes not in (None, measured['classes']):
            found.append(
                f'{self.dataset} has {self.num_classes} classes and the network {measured["classes"]} '
                'outputs: unless the first outputs are these classes, labels mean others. Name all classes '
                'of the network, in the order of its outputs, in classes.txt of a folder, or give --class_map'
            )
        return found

    def against(self, measured: dict[str, Any], clean: float, highest: float) -> list[str]:
        """What the clean accuracy, with the upper end of its interval, says of how the network was read."""
        if not self.hint:
            return []
        return gates.clean(clean, highest, measured['classes'], self.stated_clean, self.hint)

    def named(self, result: Measured) -> Measured:
        """The result with the names of its data set and network, and what speaks against the two."""
        names: dict[str, Any] = {'dataset': self.described(result.dataset), 'model': self.about}
        if isinstance(result, Audit):
            names['checks'] = self._checks(result)
        else:
            unlike = self.against(result.dataset, result.accuracy['clean'], result.ci95['clean'][1])
            names['warnings'] = self.doubts(result.dataset) + unlike + without_chance(result.warnings, unlike)
        return dataclasses.replace(result, **names)

    def _checks(self, report: Audit) -> tuple[Check, ...]:
        """The checks of an audit, after what speaks against its images and its network."""
        measured, unlike = report.dataset, []
        if report.clean is not None:
            count = measured['examples']
            unlike = self.against(measured, report.clean, wilson(round(report.clean * count), count)[1])
        told = [('images', words) for words in self.doubts(measured)] + [('clean', one) for one in unlike]
        rest = [one for one in report.checks if not (unlike and one.words.startswith(sanity.CHANCE))]
        return (*(Check(name, WARN, words) for name, words in told), *rest)


def without_chance(warnings: list[str], unlike: list[str]) -> list[str]:
    """Warnings without that of an accuracy near chance, where it is known better what it comes from."""
    return [one for one in warnings if not (unlike and one.startswith(sanity.CHANCE))]


def load(subject: Subject, at_most: int | None = None) -> Loaded:
    """Reads the network and the images of a subject, `at_most` so many unless it says how many.

    Raises:
        InputError: A value is wrong.
    """
    workdir, model, torch_checkpoint = subject.workdir, subject.model, subject.torch_checkpoint
    if sum(given is not None for given in (workdir, model, torch_checkpoint)) != 1:
        raise InputError(
            'give either --workdir=FOLDER or --model=FILE.py:FUNCTION (or zoo:NAME) or '
            '--torch_checkpoint=FILE --arch=NAME'
        )
    of_checkpoint = {
        name: getattr(subject, name) for name in ('arch', 'variant', 'normalise', 'stated_clean')
    }
    if torch_checkpoint is None and (extra := [key for key, v in of_checkpoint.items() if v is not None]):
        raise InputError(f'--{extra[0]} belongs to --torch_checkpoint: leave it out, or give that one')
    if (stated := subject.stated_clean) is not None and not 0 < stated <= 1:
        advice = f': did you mean {stated / 100:g}?' if 1 < stated <= 100 else ''
        raise InputError(f'stated_clean={stated:g} is not a fraction in (0, 1]{advice}')
    if not 0 < subject.logit_scale < float('inf'):
        raise InputError(
            f'logit_scale={subject.logit_scale:g} must be positive and finite; 1 leaves the logits alone'
        )
    classifier: Any
    about: dict[str, Any]
    # Of several radii the largest must fit the images.
    eps = max(subject.eps) if isinstance(subject.eps, tuple) else subject.eps
    norm = subject.norm
    dataset = subject.dataset and data.canonical(subject.dataset)
    options: dict[str, Any] = {'data_dir': subject.data_dir, 'preprocessing': subject.preprocessing or ''}
    section: dict[str, Any] = {}  # of the run's config, where its own data set is asked for
    hint, folder = '', Path('evaluation')
    saved = workdir or (model if model is not None and _is_saved(model) else None)
    for flag, usual in (('weights', None), ('checkpoint', 'best')):
        if (value := getattr(subject, flag)) != usual and saved is None:
            raise InputError(f'--{flag}={value} belongs to --workdir: leave it out, or give that one')
    if saved is not None:
        classifier = load_model(saved, subject.checkpoint, weights=subject.weights)
        config = classifier.config
        if dataset in (None, config.data.name):
            dataset, section = config.data.name, config.data.to_dict()
            section['preprocessing'] = subject.preprocessing or section['preprocessing']
            if workdir is None:  # a file of weights may be anyone's: no code that it names is run
                section['code'] = ''
        eps = config.threat.eps if eps is None else eps
        if norm not in (None, config.threat.norm) and subject.eps is None:
            raise InputError(
                f'--norm={norm} is given without --eps, and the network was trained in '
                f'{config.threat.norm} with eps={config.threat.eps:.6g}, which means something else in '
                'another norm: give --eps too'
            )
        norm = norm or config.threat.norm
        if workdir is None:
            about, stem = {'model': model, 'step': classifier.step}, _name_of(saved)
        else:
            about = {'workdir': workdir, 'checkpoint': subject.checkpoint, 'step': classifier.step}
            stem, folder = subject.checkpoint, Path(workdir) / 'evaluation'
        about |= {'weights': classifier.weights} if classifier.weights else {}
        about |= {'init_from': classifier.init_from} if classifier.init_from else {}
        if classifier.weights == 'live':
            stem = f'{stem}-live'
    else:
        if dataset is None:
            flag = 'model' if torch_checkpoint is None else 'torch_checkpoint'
            raise InputError(f'--{flag} needs --dataset, one of {", ".join(data.SOURCES)}')
        source = data.describe(dataset, **options)
        eps, norm = LINF_EPS if eps is None else eps, norm or 'linf'  # a result warns of it in other norms
        Threat(norm, eps).check(source.shape)
        if model is not None:
            make = load_attribute(model, 'model')
            test = data.load(dataset, 'test', **options, lazy=True)
            select(test, **subject.selection())  # before its network is traced
            classifier = made_by(make, source.shape)
            about, stem = {'model': model}, _name_of(model)
        else:
            assert torch_checkpoint is not None
            if subject.arch is None:
                raise InputError(
                    f'--torch_checkpoint needs --arch, one of {", ".join(models.ARCHITECTURES)}, '
                    'wrn_<depth>_<widen>'
                )
            normalise = subject.normalise or 'none'
            classifier = load_torch_checkpoint(
                torch_checkpoint,
                subject.arch,
                normalise=normalise,
                variant=subject.variant,
                num_classes=None if subject.class_map else source.num_classes,
                image_shape=source.shape,
            )
            about = {'torch_checkpoint': torch_checkpoint, **of_checkpoint, 'normalise': normalise}
            of_hub = hub.is_address(torch_checkpoint)
            stem = _name_of(torch_checkpoint) if of_hub else Path(torch_checkpoint).stem
            hint = accuracy_hint(subject.arch, subject.variant, normalise)
    assert dataset is not None
    if (source_of := saved or torch_checkpoint) and hub.is_address(source_of):
        about['sha256'] = sha256(hub.local(source_of))

    if subject.logit_scale != 1:
        classifier = with_logit_scale(classifier, subject.logit_scale)
        about['logit_scale'] = subject.logit_scale

    if section:
        test = data.remembered(section, 'test', subject.data_dir, lazy=True)
    else:
        test = data.load(dataset, 'test', **options, lazy=True)
    threat = Threat(norm, eps)
    threat.check(test.images.shape[1:])
    chosen = select(test, **subject.selection(), at_most=at_most)
    preprocessing = section.get('preprocessing') or subject.preprocessing
    of_images = chosen.about | ({'preprocessing': preprocessing} if preprocessing else {})
    return Loaded(
        classifier=classifier,
        images=Pixels(np.asarray(chosen.images), test.scale),  # of a set in files, no others are read
        labels=chosen.labels,
        indices=chosen.indices,
        selected=of_images,
        dataset=dataset,
        threat=threat,
        about=about,
        stem=stem,
        folder=folder,
        hint=hint,
        stated_clean=stated,
        classes=() if subject.class_map else test.classes,  # labels are outputs of the network then
        num_classes=None if subject.class_map else test.num_classes,
        warnings=chosen.warnings,
        place={'data_dir': subject.data_dir} if subject.data_dir else {},
    )


def load_classifier(model: str, image_shape: tuple[int, ...], flag: str = 'model') -> Any:
    """The classifier that `path/to/file.py:function` returns, whatever it was written in, or a saved one."""
    if _is_saved(model):
        return load_model(model)
    return made_by(load_attribute(model, flag), image_shape)


def made_by(make: Any, image_shape: tuple[int, ...]) -> Any:
    """The classifier that a function of the user's returns, of JAX or of PyTorch."""
    name = getattr(make, '__name__', type(make).__name__)
    if is_torch_module(make) or is_equinox_module(make):  # the network itself
        return load_torch_module(make, image_shape) if is_torch_module(make) else make
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise InputError(
            f'{name} cannot be called without arguments ({error}): name a function that returns the '
            f'classifier, as `def build(): return {name}`, in FILE.py:build'
        ) from error
    except ValueError:  # it has no signature, as some functions written in C
        pass
    with unended(name):
        classifier = make()
    return load_torch_module(classifier, image_shape) if is_torch_module(classifier) else classifier


def sources(models: str, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """The classifiers of --transfer_from, named after their files or folders."""
    found: dict[str, Any] = {}
    for model in models.split(','):
        name = _name_of(model)
        if name in found:
            name = f'{name}-{len(found)}'
        python = '.py:' in model
        if python:
            found[name] = load_classifier(model, image_shape, 'transfer_from')
        else:
            saved = is_file_or_zoo(model)
            found[name] = load_model(model, 'best' if saved else measured_or_last(Path(model)))
    return found


def _is_saved(model: str) -> bool:
    """Whether --model is a network of the zoo or a file of weights, not a function of a Python file."""
    return model.startswith((PREFIX, hub.PREFIX)) or model.endswith(SUFFIXES)


def _name_of(model: str) -> str:
    """A name for files and rows: of a Python file, a file of weights, a network of the zoo or a workdir."""
    if '.py:' in model:
        return Path(model.rpartition(':')[0]).stem
    if hub.is_address(model):
        return hub.parse(model).repository.replace('/', '-')
    if is_file_or_zoo(model):
        return Path(model).stem if model.endswith(SUFFIXES) else model.removeprefix(PREFIX)
    return '-'.join(Path(model).parts[-2:])


def load_attribute(model: str, flag: str) -> Any:
    """The attribute of a file, `path/to/file.py:attribute`."""
    file, separator, name = model.rpartition(':')
    if not separator or not file.endswith('.py'):
        raise InputError(f'--{flag}={model} is not of the form path/to/file.py:function')
    module = import_file(file, f'--{flag}={model}')
    found = getattr(module, name, None)
    if not callable(found) and not isinstance(found, Attack):
        functions = (key for key, value in vars(module).items() if inspect.isfunction(value))
        theirs = [key for key in functions if vars(module)[key].__module__ == module.__name__]
        raise InputError(f'{file} has no function {name!r}, only {", ".join(theirs) or "none"}')
    return found
