"""Holds the evaluator against classifiers whose robust accuracy is known exactly: `make selfcheck`."""

import argparse
import collections
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import si_jax
from benchmarks.marks import filled
from si_jax.attacks.family import ATTACKS
from si_jax.attacks.presets import PRESETS
from si_jax.attacks.searches import SEARCHES
from si_jax.errors import InputError
from si_jax.runtime import terminal
from si_jax.runtime.environment import environment
from si_jax.storage.files import write_atomic, write_json

ABOUT = """
Evaluates classifiers whose robust accuracy is known in closed form by every
attack, and looks at what was said. Each cell must be the exact value, or a
refusal or a warning that is the right one for this classifier. A cell that is
none of these is silently wrong, and the command ends with status 1.

examples:
  all of them
    python -m benchmarks.selfcheck
  some classifiers, some attacks
    python -m benchmarks.selfcheck --classifiers=masked,squashed --attacks=pgd,square
  the linear ones in L1 alone
    python -m benchmarks.selfcheck --classifiers=linear-2,linear-3,linear-10 --norms=l1
  the table of the documentation
    python -m benchmarks.selfcheck --page=docs/trust.md
"""
EPS = {'linf': 8 / 255, 'l2': 0.15, 'l1': 0.15}
SHAPE = (6, 6, 1)
WITHSTAND, FALL = 7, 5  # images of each kind, and one that is misclassified without any attack
EXACT, SHORT, REFUSED, WARNED, WRONG = 'exact', 'within its slack', 'refused', 'warned of', 'SILENTLY WRONG'
# How many of the images that fall an attack may leave standing on a linear network, and why; others none.
SLACK = {
    ('square', 'l2'): 3,  # its windows in L2 are coarse on images as small as these
    ('spsa', 'l2'): 1,  # estimates of gradients
    ('spsa-128', 'l2'): 1,
    ('spsa-512', 'l2'): 1,
    ('square', 'l1'): 3,  # its windows have 9 pixels, and the best perturbation of a linear network one
    ('sipgd', 'l1'): 2,  # from some starts: its loss rises with the features' length too
}


class Problem(NamedTuple):
    """A linear network with its images.

    An image of class y withstands if no point of the ball is misclassified: if
    min_k (g_y - g_k) / |w_k - w_y| in the dual norm is larger than eps. Every image is further from 0 and 1
    than eps, so that the range of pixels plays no part.

    Attributes:
        norm: Of the ball.
        eps: Its radius, a whole number of 255ths in Linf.
        kernel: [D, K].
        images: [N, H, W, C], multiples of 1/255.
        labels: [N].
        withstands: [N] bool, exactly; no image is nearer than a tenth of eps to the other answer.
    """

    norm: str
    eps: float
    kernel: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    withstands: np.ndarray

    def logits(self, images: Any) -> jax.Array:
        """[B, K], of images [B, H, W, C]."""
        images = jnp.asarray(images)
        return (images - 0.5).reshape(len(images), -1) @ jnp.asarray(self.kernel, images.dtype)


def problem(classes: int, norm: str) -> Problem:
    """A linear network of so many classes, whose weight vectors all have length 1."""
    rng = np.random.default_rng(classes)
    kernel = rng.normal(size=(int(np.prod(SHAPE)), classes))
    kernel /= np.linalg.norm(kernel, axis=0)
    images = rng.integers(50, 206, (4000, *SHAPE)) / 255
    logits = (images - 0.5).reshape(len(images), -1) @ kernel
    labels = np.argmax(logits, axis=1)
    gaps = np.take_along_axis(logits, labels[:, None], 1) - logits
    order = {'linf': 1, 'l2': 2, 'l1': np.inf}[norm]  # of the dual norm
    lengths = np.linalg.norm(kernel[:, :, None] - kernel[:, None, :], order, axis=0)[labels]
    others = np.arange(classes) != labels[:, None]
    needed = np.where(others, gaps / np.where(others, lengths, 1), np.inf).min(axis=1) / EPS[norm]
    chosen = np.concatenate(
        [
            np.flatnonzero((needed > 1.1) & (needed < 3))[:WITHSTAND],
            np.flatnonzero((needed > 0.3) & (needed < 0.7))[: FALL + 1],
        ]
    )
    assert len(chosen) == WITHSTAND + FALL + 1
    labels = labels[chosen]
    labels[-1] = (labels[-1] + 1) % classes
    withstands = (needed[chosen] > 1) & (np.arange(len(chosen)) < len(chosen) - 1)
    return Problem(norm, EPS[norm], kernel, images[chosen].astype(np.float32), labels, withstands)


class Case(NamedTuple):
    """A classifier, and what may be said of it.

    Attributes:
        about: What it is, in a few words.
        make: problem -> classifier.
        classes: Of the linear network behind it.
        refusal: What the refusal says, as a regular expression; None if it must not be refused.
        warning: What the warning says; likewise.
        always: Whether the warning or refusal must come even where the value is exact.
        exact: problem -> [N] bool, which images withstand, where it is not as in the problem.
        settings: Further arguments of `evaluate`, from the problem; they may replace images.
        norms: Where the closed form holds.
    """

    about: str
    make: Callable[[Problem], Any]
    classes: int = 3
    refusal: str | None = None
    warning: str | None = None
    always: bool = False
    exact: Callable[[Problem], np.ndarray] = lambda p: p.withstands
    settings: Callable[[Problem], dict[str, Any]] = lambda p: {}
    norms: tuple[str, ...] = ('linf', 'l2')


def scaled(factor: float) -> Callable[[Problem], Any]:
    """The linear network with its logits times a factor."""
    return lambda p: lambda x: factor * p.logits(x)


def in_dtype(dtype: Any) -> Callable[[Problem], Any]:
    """The linear network, computed in this precision."""
    return lambda p: lambda x: p.logits(x.astype(dtype))


def one_class(p: Problem) -> Any:
    """Answers class 0 whatever the image."""
    return lambda x: p.logits(x) + 1e3 * jax.nn.one_hot(0, p.kernel.shape[1])


def masked(p: Problem) -> Any:
    """With a further class that no image can have."""
    return lambda x: jnp.concatenate([p.logits(x), jnp.full((len(x), 1), -1e9, x.dtype)], axis=1)


def masked_batch(p: Problem) -> Any:
    """The masked network, with the mean of the batch taken off each image."""
    return lambda x: masked(p)(x - 0.9 * (x.mean(0, keepdims=True) - 0.5))


def rounded(p: Problem) -> Any:
    """Images are rounded to 8 bits before the network: the gradient is zero everywhere."""
    return lambda x: p.logits(jnp.round(255 * x) / 255)


def trapped(root: Callable[[jax.Array], jax.Array]) -> Callable[[Problem], Any]:
    """With a term that is zero but for rounding, whose derivative at the images' own pixels is not finite."""

    def make(p: Problem) -> Any:
        first = float(p.images[0, 0, 0, 0])

        def classifier(x: jax.Array) -> jax.Array:
            away = (x[:, 0, 0, 0] - first) ** 2
            return p.logits(x) + 1e-12 * root(away)[:, None] * jnp.arange(p.kernel.shape[1])

        return classifier

    return make


def undefined(p: Problem) -> Any:
    """NaN wherever an image that withstands has moved at all: at points of the ball, at no clean image."""
    images = jnp.asarray(p.images)

    def classifier(x: jax.Array) -> jax.Array:
        near = jnp.abs(x[:, None] - images[None]).max(axis=(2, 3, 4))
        moved = (near.min(axis=1) > 1e-6) & (jnp.argmin(near, axis=1) == 0)
        return jnp.where(moved[:, None], jnp.nan, p.logits(x))

    return classifier


def host_random(p: Problem) -> Any:
    """Draws its noise with NumPy."""
    rng = np.random.default_rng(0)
    return lambda x: p.logits(x) + 0.1 * rng.normal(size=(len(x), p.kernel.shape[1])).astype(np.float32)


def noisy(p: Problem) -> Any:
    """Adds noise, drawn from keys, that no decision depends on."""

    def function(x: jax.Array, keys: jax.Array) -> jax.Array:
        noise = jax.vmap(lambda key: jax.random.normal(key, (p.kernel.shape[1],)))(keys)
        return p.logits(x) + 1e-4 * noise

    return si_jax.Randomised(function)


def first_class(p: Problem) -> np.ndarray:
    """Right for the images of class 0, whatever the attack."""
    return p.labels == 0


def as_nchw(p: Problem) -> dict[str, Any]:
    """The images three times, as channels, and with them in front."""
    return {'images': np.repeat(p.images, 3, axis=3).transpose(0, 3, 1, 2)}


def from_channels(axis: int) -> Callable[[Problem], Any]:
    """The linear network on the mean of the channels, which lie on this axis."""
    return lambda p: lambda x: p.logits(x.mean(axis=axis, keepdims=True).reshape(len(x), *SHAPE))


GRADIENT = 'gradient'
ALL_PIXELS = 'moves all pixels by as much'  # of RayS in L1, where the best perturbation moves one
OUT_OF_RANGE = 'times a factor'  # of logits that SPSA cannot follow
NO_LAYER = 'needs the features and the kernel'  # of SI attacks: the logits are no linear layer's


def squashed(about: str, squash: Callable[[jax.Array], jax.Array]) -> Case:
    """The linear network with its logits, times 20, put through a function that keeps their order."""
    return Case(
        about,
        lambda p: lambda x: squash(20 * p.logits(x)),
        warning='outputs look like',
        refusal=NO_LAYER,
        always=True,
    )


CASES = {
    'linear-2': Case(
        'linear, 2 classes',
        scaled(1.0),
        2,
        refusal='needs at least 3 classes',
        warning=ALL_PIXELS,
        norms=tuple(EPS),
    ),
    'linear-3': Case('linear, 3 classes', scaled(1.0), warning=ALL_PIXELS, norms=tuple(EPS)),
    'linear-10': Case('linear, 10 classes', scaled(1.0), 10, warning=ALL_PIXELS, norms=tuple(EPS)),
    'constant': Case(
        'the same logits for every image',
        lambda p: lambda x: jnp.zeros((len(x), 3)).at[:, 0].set(1.0) + 0 * x.mean((1, 2, 3))[:, None],
        warning='same logits for every image|every image gets class',
        refusal=NO_LAYER,
        always=True,
        exact=first_class,
    ),
    'one-class': Case(
        'one class for every image',
        one_class,
        warning='every image gets class',
        always=True,
        exact=first_class,
    ),
    'masked': Case('one more class, its logit fixed at -1e9', masked, refusal=NO_LAYER),
    'masked-batch': Case(
        'the same, and logits that depend on the batch',
        masked_batch,
        refusal=f'other images|{NO_LAYER}',
        always=True,
    ),
    'times-1e-30': Case('logits times 1e-30', scaled(1e-30), warning=f'{GRADIENT}|{OUT_OF_RANGE}'),
    'times-1e-10': Case('logits times 1e-10', scaled(1e-10), warning=OUT_OF_RANGE),
    'times-1e10': Case('logits times 1e10', scaled(1e10), warning=GRADIENT),
    'times-1e30': Case(
        'logits times 1e30', scaled(1e30), warning=f'{GRADIENT}|{OUT_OF_RANGE}', refusal='NaN or infinite'
    ),
    'nan-in-the-ball': Case(
        'NaN at some points of the ball', undefined, refusal=f'NaN or infinite|{NO_LAYER}'
    ),
    'zero-gradient': Case(
        'pixels rounded to 8 bits: the gradient is zero', rounded, warning=GRADIENT, norms=('linf',)
    ),
    'blocked-gradient': Case(
        'a gradient blocked by stop_gradient',
        lambda p: lambda x: p.logits(jax.lax.stop_gradient(x)),
        warning=GRADIENT,
    ),
    'nan-gradient': Case('NaN in the gradient', trapped(jnp.sqrt), warning='not finite', refusal=NO_LAYER),
    'infinite-gradient': Case(
        'infinity in the gradient', trapped(lambda q: q**0.4), warning='not finite', refusal=NO_LAYER
    ),
    'softmax': squashed('probabilities, by softmax', jax.nn.softmax),
    'sigmoid': squashed('a sigmoid of each logit', jax.nn.sigmoid),
    'softmax-100': squashed('100 times softmax', lambda z: 100 * jax.nn.softmax(z)),
    'softmax-half': squashed('softmax in float16', lambda z: jax.nn.softmax(z).astype(jnp.float16)),
    'batch': Case(
        'logits that depend on the batch',
        lambda p: lambda x: p.logits(x - 0.9 * (x.mean(0, keepdims=True) - 0.5)),
        refusal='other images',
        always=True,
    ),
    'host-random': Case('random numbers of NumPy', host_random, refusal='disagree', always=True),
    'noise': Case('random numbers from keys (Randomised)', noisy, refusal=NO_LAYER, warning='eot_samples'),
    'float16': Case('linear, in float16', in_dtype(jnp.float16)),
    'bfloat16': Case('linear, in bfloat16', in_dtype(jnp.bfloat16)),
    'nchw': Case(
        'images [N, C, H, W]', from_channels(1), refusal='NHWC|transpose', always=True, settings=as_nchw
    ),
    'nchw-named': Case(
        "images [N, C, H, W] with layout='nchw'",
        from_channels(1),
        settings=lambda p: as_nchw(p) | {'layout': 'nchw'},
        norms=('linf',),
    ),
    'black-box': Case(
        'a NumPy function as a BlackBox',
        lambda p: si_jax.BlackBox(
            lambda x: (np.asarray(x) - 0.5).reshape(len(x), -1) @ p.kernel.astype(np.float32),
            p.kernel.shape[1],
        ),
        refusal='BlackBox|gradient',
    ),
}


class Cell(NamedTuple):
    """What an attack said of a classifier.

    Attributes:
        verdict: `EXACT`, `SHORT`, `REFUSED`, `WARNED` or `WRONG`.
        accuracy: The fraction; None if it was refused.
        exact: The exact one.
        words: The refusal, or the warnings.
    """

    verdict: str
    accuracy: float | None
    exact: float
    words: str


def cell(case: Case, norm: str, attack: str, **settings: Any) -> Cell:
    """Evaluates a classifier by an attack and judges what came of it."""
    p = problem(case.classes, norm)
    exact = case.exact(p)
    given: dict[str, Any] = {'images': p.images, **case.settings(p), **settings}
    try:
        result = si_jax.evaluate(
            case.make(p), given.pop('images'), p.labels, attacks=attack, eps=p.eps, norm=norm, **given
        )
    except InputError as error:
        right = case.refusal is not None and re.search(case.refusal, str(error))
        return Cell(REFUSED if right else WRONG, None, float(exact.mean()), str(error))
    flags, words = result.correct[attack], ' '.join(result.warnings)
    warned = case.warning is not None and re.search(case.warning, words) is not None
    left = int(np.sum(flags & ~exact))
    if np.any(exact & ~flags):
        verdict = WRONG  # an image that withstands every point of the ball was called broken
    elif warned:
        verdict = WARNED
    elif case.always or left > SLACK.get((attack, norm), 0):
        verdict = WRONG
    else:
        verdict = SHORT if left else EXACT
    return Cell(verdict, float(flags.mean()), float(exact.mean()), words)


def attacks() -> tuple[str, ...]:
    """Every attack and preset by name."""
    return *ATTACKS, *SEARCHES, *PRESETS


def cells(
    classifiers: Iterable[str], names: Iterable[str], norms: Iterable[str] = tuple(EPS), **settings: Any
) -> Iterator[tuple[str, str, str, Cell]]:
    """(classifier, norm, attack, cell) of all of these, one after another; no norm that a case lacks."""
    names, norms = tuple(names), tuple(norms)
    for classifier in classifiers:
        case = CASES[classifier]
        for norm in (norm for norm in case.norms if norm in norms):
            for attack in names:
                yield classifier, norm, attack, cell(case, norm, attack, **settings)


def table(found: list[tuple[str, str, str, Cell]]) -> str:
    """The table of the documentation: how many attacks said what, by classifier and norm."""
    by_case = collections.defaultdict(collections.Counter)
    accuracies: dict[tuple[str, str], float] = {}
    for classifier, norm, _, one in found:
        by_case[classifier, norm][one.verdict] += 1
        accuracies[classifier, norm] = one.exact
    verdicts = (EXACT, SHORT, WARNED, REFUSED, WRONG)
    lines = [
        f'| classifier | norm | exact value | {" | ".join(verdicts)} |',
        f'|---|---|---|{"---|" * len(verdicts)}',
    ]
    for (classifier, norm), counts in by_case.items():
        numbers = ' | '.join(str(counts[verdict] or '') for verdict in verdicts)
        lines.append(
            f'| {CASES[classifier].about} | {norm} | {100 * accuracies[classifier, norm]:.1f} | {numbers} |'
        )
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its status."""
    prog = 'python -m benchmarks.selfcheck'
    flags = terminal.parser(
        prog, f'{prog} [flags]', ABOUT, terminal.exit_status('a cell is silently wrong', 'nothing is kept')
    )
    flags.add_argument('--classifiers', default=','.join(CASES), help='names, with commas between')
    flags.add_argument('--attacks', default=','.join(attacks()), help='names, with commas between')
    flags.add_argument('--norms', default=','.join(EPS), help='names, with commas between')
    flags.add_argument(
        '--output',
        default='results/selfcheck.json',
        help='the file of what was measured; other cells in it stay',
    )
    flags.add_argument('--page', help='a page with the table, which is written anew')
    given = flags.parse_args(argv)
    return terminal.run('selfcheck', lambda: measure(given))


def measure(given: argparse.Namespace) -> int:
    """Measures the cells that were asked for, and writes them down; others of the output file stay."""
    began, measured = time.perf_counter(), {}
    for *where, one in cells(*(text.split(',') for text in (given.classifiers, given.attacks, given.norms))):
        classifier, norm, attack = where
        measured[classifier, norm, attack] = one
        accuracy = '-' if one.accuracy is None else f'{100 * one.accuracy:.1f}'
        print(f'{classifier:<18}{norm:<6}{attack:<17}{accuracy:>6} of {100 * one.exact:.1f}  {one.verdict}')
        if one.verdict == WRONG:
            print(f'    {one.words or "nothing was said"}')
        sys.stdout.flush()
    seconds, output = time.perf_counter() - began, Path(given.output)
    before = json.loads(output.read_text()) if output.exists() else {'cells': [], 'runs': []}
    kept = {
        (one.pop('classifier'), one.pop('norm'), one.pop('attack')): Cell(**one) for one in before['cells']
    }
    order = {name: number for number, name in enumerate((*CASES, *EPS, *attacks()))}
    found = sorted((kept | measured).items(), key=lambda item: [order.get(part, -1) for part in item[0]])
    runs = [*before['runs'], {'cells': len(measured), 'seconds': seconds, 'environment': environment()}]
    about = {
        'cells': [
            {'classifier': classifier, 'norm': norm, 'attack': attack, **one._asdict()}
            for (classifier, norm, attack), one in found
        ],
        'runs': runs,
    }
    write_json(output, about)
    if given.page:
        page = Path(given.page)
        grid = table([(*where, one) for where, one in found])
        write_atomic(page, filled(page.read_text(), {'selfcheck': grid}).encode())
    wrong = sum(one.verdict == WRONG for _, one in found)
    print(f'{len(found)} cells, {wrong} silently wrong, {seconds:.0f} s; written to {output}')
    return terminal.FAILED if wrong else terminal.OK


if __name__ == '__main__':
    sys.exit(main())
