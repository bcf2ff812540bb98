"""What evaluate.py is about: its network and images, as flags name them and as they are read."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from si_jax import data, models
from si_jax.attacks.pgd import Attack
from si_jax.auditing.report import Audit
from si_jax.cli import outputs
from si_jax.errors import InputError, unknown
from si_jax.evaluation.classifier import with_logit_scale
from si_jax.evaluation.request import check_count
from si_jax.evaluation.result import Result
from si_jax.interop.loading import is_torch_module, load_torch_checkpoint, load_torch_module
from si_jax.interop.torch_weights import accuracy_hint
from si_jax.runtime import terminal
from si_jax.runtime.terminal import Flag, fraction
from si_jax.threat import Threat
from si_jax.zoo.entries import PREFIX
from si_jax.zoo.load import is_file_or_zoo, load_model
from si_jax.zoo.weights import SUFFIX

Measured = TypeVar('Measured', Audit, Result)

# The flags of what is evaluated; `Subject` has a field for each.
NETWORK = {
    'workdir': Flag('FOLDER', 'of a run of train.py'),
    'model': Flag(
        'FILE.py:FUNCTION',
        'a function that returns a classifier or nn.Module; or zoo:NAME, or a file of weights FILE.npz',
    ),
    'torch_checkpoint': Flag('FILE', 'PyTorch weights, of torch.save or safetensors'),
    'checkpoint': Flag('WHICH', 'of --workdir: best, last or a step', default='best'),
    'arch': Flag(
        'NAME', 'of --torch_checkpoint: resnet18, resnet50, preact_resnet18, wrn_<depth>_<width>, small_cnn'
    ),
    'variant': Flag('NAME', 'of --arch, where two have the same names (the error lists them)'),
    'normalise': Flag(
        'NAME', 'what the authors of the checkpoint do to images: none, cifar10 or 2x-1 (default: none)'
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
    'dataset': Flag('NAME', "the test split of cifar10, cifar100, svhn or digits (default: the run's)"),
    'data_dir': Flag('FOLDER', 'with <name>_test.npz, or data_dir of tensorflow-datasets (default: its own)'),
    'num_examples': Flag('N', 'only the first N images (default: all, 200 with --audit)', int),
    'eps': Flag(None, "radius in the pixel range [0, 1] (default: the run's, or 8/255)", fraction),
    'norm': Flag(None, "linf, l2 or l1 (default: the run's, or linf)"),
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated: the values of the flags `NETWORK` and `IMAGES`, whose help says what they mean."""

    workdir: str | None
    model: str | None
    torch_checkpoint: str | None
    checkpoint: str
    arch: str | None
    variant: str | None
    normalise: str | None
    stated_clean: float | None
    logit_scale: float
    dataset: str | None
    data_dir: str | None
    num_examples: int | None
    eps: float | None
    norm: str | None

    @classmethod
    def take(cls, arguments: dict[str, Any]) -> 'Subject':
        """Takes its fields out of parsed flags, and leaves the others."""
        return cls(**{name: arguments.pop(name) for name in (*NETWORK, *IMAGES)})

    def reads(self) -> list[str | None]:
        """The files and folders that it names."""
        return [self.workdir, self.torch_checkpoint, self.data_dir, *outputs.of_model(self.model)]


class Loaded(NamedTuple):
    """A subject that was read: its network, with images and their labels."""

    classifier: Any
    images: np.ndarray  # [N, H, W, C], in [0, 1]: the first ones of the test split
    labels: np.ndarray  # [N]
    dataset: str
    threat: Threat  # the ball that was asked for, or that of the run
    about: dict[str, Any]  # where the network came from, in JSON's types
    stem: str  # how the files of its results begin
    folder: Path  # where they go, unless said otherwise
    hint: str  # what to try if it classifies clean images badly; '' if nothing can be said

    def path(self, output: str | None, name: str, settings: dict[str, Any]) -> Path:
        """The file of a result; unless one is given, other settings have another."""
        choice = {'dataset': self.dataset, 'eps': self.threat.eps, 'norm': self.threat.norm, **settings}
        choice |= {key: self.about[key] for key in ('logit_scale',) if key in self.about}
        digest = hashlib.sha256(json.dumps(choice, sort_keys=True).encode()).hexdigest()[:8]
        return Path(output) if output else self.folder / f'{self.stem}-{name}-{digest}.json'

    def named(self, result: Measured) -> Measured:
        """The result with the names of its data set and network."""
        described = {'name': self.dataset, 'split': 'test', **result.dataset}
        return dataclasses.replace(result, dataset=described, model=self.about)


def load(subject: Subject) -> Loaded:
    """Reads the network and the images of a subject.

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
    dataset, data_dir, eps, norm = subject.dataset, subject.data_dir, subject.eps, subject.norm
    hint, folder = '', Path('evaluation')
    saved = workdir or (model if model is not None and _is_saved(model) else None)
    if saved is not None:
        classifier = load_model(saved, subject.checkpoint)
        config = classifier.config
        if dataset in (None, config.data.name):
            dataset, data_dir = config.data.name, data_dir or config.data.dir
        eps = config.threat.eps if eps is None else eps
        norm = norm or config.threat.norm
        if workdir is None:
            about, stem = {'model': model, 'step': classifier.step}, _name_of(saved)
        else:
            about = {'workdir': workdir, 'checkpoint': subject.checkpoint, 'step': classifier.step}
            stem, folder = subject.checkpoint, Path(workdir) / 'evaluation'
        if config.average.kind:
            about['weights'] = f'average: {config.average.kind}'
    else:
        if dataset is None:
            flag = 'model' if torch_checkpoint is None else 'torch_checkpoint'
            raise InputError(f'--{flag} needs --dataset, one of {", ".join(data.SOURCES)}')
        if dataset not in data.SOURCES:
            raise unknown('data set', dataset, data.SOURCES)
        source = data.SOURCES[dataset]
        eps, norm = 8 / 255 if eps is None else eps, norm or 'linf'
        Threat(norm, eps).check(source.shape)
        if model is not None:
            make = load_attribute(model, 'model')
            _count(subject, data.load(dataset, 'test', data_dir), dataset)  # before its network is traced
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
                num_classes=source.num_classes,
                image_shape=source.shape,
            )
            about = {'torch_checkpoint': torch_checkpoint, **of_checkpoint, 'normalise': normalise}
            stem = Path(torch_checkpoint).stem
            hint = accuracy_hint(subject.arch, subject.variant, normalise)
    assert dataset is not None

    if subject.logit_scale != 1:
        classifier = with_logit_scale(classifier, subject.logit_scale)
        about['logit_scale'] = subject.logit_scale

    test = data.load(dataset, 'test', data_dir)
    threat = Threat(norm, eps)
    threat.check(test.images.shape[1:])
    count = _count(subject, test, dataset)
    images = np.asarray(data.to_unit(jnp.asarray(test.images[:count]), test.scale))
    return Loaded(classifier, images, test.labels[:count], dataset, threat, about, stem, folder, hint)


def _count(subject: Subject, test: Any, dataset: str) -> int:
    """How many of the test images are wanted."""
    count, there = subject.num_examples, len(test.labels)
    if count is not None and check_count('num_examples', count) > there:
        raise InputError(f'num_examples={count} is more than the {there} images of {dataset}')
    return there if count is None else count


def load_classifier(model: str, image_shape: tuple[int, ...], flag: str = 'model') -> Any:
    """The classifier that `path/to/file.py:function` returns, whatever it was written in, or a saved one."""
    if _is_saved(model):
        return load_model(model)
    return made_by(load_attribute(model, flag), image_shape)


def made_by(make: Any, image_shape: tuple[int, ...]) -> Any:
    """The classifier that a function of the user's returns, of JAX or of PyTorch."""
    with unended(getattr(make, '__name__', 'the function')):
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
        found[name] = load_classifier(model, image_shape, 'transfer_from') if python else load_model(model)
    return found


def _is_saved(model: str) -> bool:
    """Whether --model is a network of the zoo or a file of weights, not a function of a Python file."""
    return model.startswith(PREFIX) or model.endswith(SUFFIX)


def _name_of(model: str) -> str:
    """A name for files and rows: of a Python file, a file of weights, a network of the zoo or a workdir."""
    if '.py:' in model:
        return Path(model.rpartition(':')[0]).stem
    if is_file_or_zoo(model):
        return Path(model).stem if model.endswith(SUFFIX) else model.removeprefix(PREFIX)
    return '-'.join(Path(model).parts[-2:])


@contextlib.contextmanager
def unended(what: str) -> Iterator[None]:
    """Code of the user's cannot end the command from within it: that would look as if all were done."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop, terminal.Stopped):
            raise
        raise InputError(
            f'{what} called sys.exit({"" if stop.code is None else repr(stop.code)}), and there is no '
            "network: put what a script does of its own under `if __name__ == '__main__':`"
        ) from stop


def load_attribute(model: str, flag: str) -> Any:
    """The attribute of a file, `path/to/file.py:attribute`."""
    file, separator, name = model.rpartition(':')
    if not separator or not file.endswith('.py'):
        raise InputError(f'--{flag}={model} is not of the form path/to/file.py:function')
    path = Path(file)
    if not path.is_file():
        raise InputError(f'--{flag}={model}: there is no file {file}')
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # it may import its neighbours, as a script can
    with unended(f'--{flag}={model}'):
        spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found) and not isinstance(found, Attack):
        functions = (key for key, value in vars(module).items() if inspect.isfunction(value))
        theirs = [key for key in functions if vars(module)[key].__module__ == module.__name__]
        raise InputError(f'{file} has no function {name!r}, only {", ".join(theirs) or "none"}')
    return found
