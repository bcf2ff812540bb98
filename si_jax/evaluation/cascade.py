"""The cascade: searches one after another, each on the images that are still classified correctly.

Each search starts from the original images. A targeted one aims at the classes of rank 2 to 10 of the clean
logits in turn (APGD-T in L1 at those of rank 2 to 6), and only images that withstood one target go on to the
next. Since an image's random numbers come from its own key and the name of the attack, a stage does the same
to it here as when it runs alone.

For a random classifier one misclassified draw decides nothing. So each search makes all its iterations, and
the point that it takes for the worst is judged by draws of its own; the smallest share of right draws counts.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from si_jax.attacks import malt
from si_jax.attacks.facts import facts
from si_jax.attacks.presets import SCREENS, VARIANTS, Stage
from si_jax.attacks.rays import average_distance
from si_jax.attacks.registry import row_of
from si_jax.attacks.search import Problem, Search, averaged
from si_jax.attacks.searches import SearchAttack
from si_jax.attacks.settings import file_name
from si_jax.evaluation.gates import Part
from si_jax.evaluation.network import Network, vote
from si_jax.evaluation.packing import CompiledSearch, compile_search, run_search
from si_jax.evaluation.packing import Outcome as SearchOutcome
from si_jax.evaluation.pgd import Outcome, count_gradients
from si_jax.evaluation.request import Request
from si_jax.evaluation.result import AttackRecord, GradientCounts
from si_jax.evaluation.state import Arrays, Work, remember, remember_all
from si_jax.runtime import progress
from si_jax.runtime.devices import compile_rows
from si_jax.runtime.progress import GRADIENT
from si_jax.threat import Threat

# The public implementation that the protocols follow.
REFERENCE = 'fra31/auto-attack a392200'
# How much farther than a point that was refused the next ones are, as long as the ball reaches.
BEYOND = (1.001, 1.01, 1.1, 1.5)


@dataclasses.dataclass(frozen=True)
class Cascade:
    """A search, which is its only stage, or a preset of several; `given` are the settings in its name."""

    name: str
    stages: tuple[Stage, ...]
    given: dict[str, Any] = dataclasses.field(default_factory=dict)
    unit: str = ''  # what its finished parts are called on disk, if not after its name

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the gates ask about it."""
        asked, by = self.given.get('n_targets', 0), self.given.get('choice', '')
        names = [self.name] if len(self.stages) == 1 else [one.attack for one in self.stages]
        return tuple(
            Part(name, facts(one.row), one.eot_samples, n_targets=asked, chooses=bool(asked or by))
            for name, one in zip(names, self.stages, strict=True)
        )

    @property
    def beginning(self) -> 'Cascade':
        """Its first search alone, for a profile."""
        first = self.stages[0]._replace(restarts=1, targets=1)
        return dataclasses.replace(self, stages=(first,))

    def cost(self, request: Request) -> int:
        """The forward passes that it makes of an image, at most and roughly."""
        stages = self._stages(request)
        return sum(runs(stage, request) * cost(stage, request) for stage in stages)

    def _stages(self, request: Request) -> list[Stage]:
        """The stages, toward the classes of the request if it has some."""
        aimed = request.aims is not None
        return [stage._replace(aimed=True, targets=1) if aimed else stage for stage in self.stages]

    def run(self, network: Network, request: Request) -> Outcome:
        """Runs the stages on the correctly classified images.

        With `individual` each stage runs on all of these, not only on those that the ones before left: the
        flags of the attack are the same, those of the stages are more. An image that was not broken stays
        the original. One of a random classifier goes on until no draw is right.
        """
        clean, share = network.clean, network.clean_share.copy()
        broken_by = np.full(len(clean), -1, np.int8)
        queries, distances = np.zeros(len(clean), np.int64), np.zeros(len(clean))
        kept = np.array(network.images) if request.keep else np.zeros((0, *network.images.shape[1:]))
        tables, gradients, largest, seconds = [], [], 0.0, {}
        stages, unit = self._stages(request), self.unit or file_name(self.name)
        success = None if request.aims is None else np.argmax(network.clean_logits, axis=1) == request.aims
        for number, stage in enumerate(stages):
            began = time.perf_counter()
            if len(self.stages) > 1:
                progress.current().set_postfix(attack=f'{self.name}: {stage.attack}')
            before = network.clean_share if request.individual else share
            done = _run_stage(network, request, f'{unit}-{number}', stage, clean & (before > 0), before)
            lower = done.share < share
            broken_by[clean & vote(share) & ~vote(done.share)] = number
            share = np.minimum(share, done.share)
            queries += done.queries
            distances, largest = done.distances, max(largest, done.largest)
            if success is not None:
                success = success | done.reached
            if request.keep:
                kept[lower] = done.images[lower]
            tables.append(_table(stage, done, request))
            gradients.append(done.gradients)
            seconds[stage.attack] = time.perf_counter() - began
        # Of several stages only the end is known; of one, what each restart left.
        runs = done.after if len(stages) == 1 else share[None]
        row = row_of(self.name)
        single = row if isinstance(row, SearchAttack) else None
        record = AttackRecord(
            runs=vote(runs),
            shares=None if network.request.decisions is None else runs,
            steps=tables[0]['iterations'] if single else None,
            step_size=None,
            eot_samples=self.stages[0].eot_samples if self._takes_draws(network) else None,
            max_perturbation=largest,
            stages=tuple(tables),
            protocol=_protocol(self.name, stages, request),
            broken_by=broken_by,
            queries=queries,
            distances=distances if single and single.measures_distance else None,
            gradients=tuple(gradients),
            success=success,
        )
        return Outcome(record, kept, seconds if len(self.stages) > 1 else {})

    def _takes_draws(self, network: Network) -> bool:
        return network.request.decisions is not None or self.stages[0].row.averages


def runs(stage: Stage, request: Request) -> int:
    """How many searches a stage makes one after another: one for each restart, and for each target in it."""
    targets = min(stage.targets, request.classes - 1)
    return stage.restarts * (targets if _search(stage, request).targeted else 1)


def cost(stage: Stage, request: Request) -> int:
    """The forward passes that a run makes of an image, at most and roughly."""
    row = stage.row
    queries = _search(stage, request).iterations * row.queries * stage.eot_samples
    return round(queries * (1 + (GRADIENT - 1) * row.gradients(request.classes)))


class _Done(NamedTuple):
    """What a stage did; the arrays are for all N images, whether attacked or not.

    `share` is that of right draws, as in `Network`, at the worst of its points and of those before it;
    `reached` are the images that are classified as the targets of the request.
    """

    attacked: int
    broken: np.ndarray
    share: np.ndarray
    images: np.ndarray
    queries: np.ndarray
    distances: np.ndarray
    forward_passes: int
    refused: int
    largest: float
    gradients: GradientCounts | None
    reached: np.ndarray
    after: np.ndarray  # [R, N], the share after each restart


def _run_stage(
    network: Network, request: Request, unit: str, stage: Stage, attacked: np.ndarray, before: np.ndarray
) -> _Done:
    row, count = stage.row, len(attacked)
    targets, places = np.zeros((1, count), np.int32), np.zeros((1, count), np.int32)
    if request.aims is not None:
        targets = request.aims[None]
    elif _search(stage, request).targeted:
        targets, places = _targets(network, stage, request.threat, unit, attacked)

    alive, share = attacked.copy(), before.copy()
    queries, distances = np.zeros(count, np.int64), np.zeros(count)
    images = np.zeros(network.images.shape, network.images.dtype) if request.keep else np.zeros((0,))
    zero, not_finite, reached = attacked.copy(), np.zeros(count, bool), np.zeros(count, bool)
    forward_passes, refused, largest, each = 0, 0, 0.0, cost(stage, request)
    apply, shared = network.surrogate(row.calibrated)
    random = network.request.decisions is not None
    # A search that averages counts each draw as a query of its own.
    draws = 1 if row.averages else stage.eot_samples

    def apply_mean(weights: Any, x: Any, keys: Any) -> Any:
        return averaged(functools.partial(apply, weights), stage.eot_samples)(x, keys)

    alone, after = draws == 1 or row.votes, []
    if request.handed:
        shared = shared, request.handed[0]
    threat = None if request.handed else request.threat

    def compiled(again: bool) -> CompiledSearch:
        # Restarts but the first may be searches of their own, but are all alike.
        search = _search(stage, request, int(again))
        given = apply if alone else apply_mean
        sizes = network.pack_sizes(int(attacked.sum()))
        return compile_search(search, row.part, given, threat, network.key_impl, network.devices, sizes)

    def search(rows: np.ndarray, again: bool, aims: np.ndarray, keys: np.ndarray) -> Arrays:
        """One search on some rows: a unit of work."""
        largest = 0.0

        def confirm(some: np.ndarray, found: np.ndarray) -> np.ndarray:
            nonlocal largest
            chosen = rows[some]
            correct, _ = network.confirm(chosen, found, keys[chosen], request.threat, stage.attack)
            wrong = ~correct
            if wrong.any():  # what is refused is nobody's final image
                counted = network.judged(found[wrong], chosen[wrong], request.threat)
                moved = request.threat.audit(counted, network.images[chosen[wrong]], source=stage.attack)
                largest = max(largest, moved)
            return wrong

        about = stage._replace(restarts=1, targets=1), row, request.built_in[0], again
        program = network.program(about, functools.partial(compiled, again))
        problem = network.images[rows], network.labels[rows], keys[rows], aims[rows]
        wanted = row.measures_distance
        outcome = run_search(program, shared, problem, None if random else confirm, final=wanted or random)
        if wanted and not random:
            outcome = further(outcome, program.search, problem, network, request.threat, confirm)
        final = outcome.final if wanted else None
        found: Arrays = {'broken': outcome.broken, 'images': outcome.images}
        queries = outcome.queries
        if random:
            found = judged(rows, program.search, problem, outcome.final, keys)
            largest = found['largest']
            # It counts to its first misclassified draw, and goes on.
            queries = np.full(len(rows), program.search.iterations * row.queries * stage.eot_samples)
        if request.aims is not None:
            fell = rows[outcome.broken]
            found['reached'] = outcome.broken.copy()
            if len(fell):
                judged_as = network.judged(outcome.images, fell, request.threat)
                decided = network.logits(judged_as, keys[fell])
                found['reached'][outcome.broken] = np.argmax(decided, axis=1) == aims[fell]
        return {
            **found,
            'images': found['images'] if request.keep else found['images'][:0].copy(),
            # An attack that measures distances goes on after its first success.
            'queries': queries if final is None else draws * final.queries,
            'forward_passes': queries.sum(),
            'distances': np.zeros(len(rows)) if final is None else final.distance.astype(np.float64),
            'refused': np.int64(outcome.refused),
            'largest': np.float64(largest),
            **({} if outcome.gradients is None else outcome.gradients._asdict()),
        }

    def judged(rows: np.ndarray, search: Search, problem: Any, inner: Any, keys: np.ndarray) -> Arrays:
        images, labels, _, aims = problem
        worst = search.worst(Problem(images, labels, network.typed(keys[rows]), aims), request.threat, inner)
        images = np.asarray(worst)
        right, largest = network.judge(rows, images, keys[rows], request.threat, stage.attack)
        return {'share': right, 'images': images, 'largest': largest}

    for run in range(runs(stage, request)):
        restart, target = divmod(run, len(targets))
        # A target has the random numbers of its place by the logits, whatever chose it: the same targets
        # break the same images in any order.
        keys = _keys(network, stage.attack, restart * len(targets) + places[target])
        aims = targets[target]
        groups = network.groups(np.flatnonzero(alive))
        progress.current().skip(each * (count - sum(map(len, groups))))
        begin = functools.partial(search, again=restart > 0, aims=aims, keys=keys)
        work = [
            Work(f'{unit}-{run}-{number}', each * len(rows), functools.partial(begin, rows))
            for number, rows in enumerate(groups)
        ]
        for rows, arrays in zip(groups, remember_all(work), strict=True):
            found = arrays['share'] if random else ~arrays['broken']
            lower = found < share[rows]
            share[rows] = np.minimum(share[rows], found)
            alive[rows] = share[rows] > 0
            reached[rows] |= arrays.get('reached', False)
            queries[rows] += arrays['queries']
            distances[rows] = arrays['distances']
            forward_passes += int(arrays['forward_passes'])
            refused += int(arrays['refused'])
            largest = max(largest, float(arrays['largest']))
            if not row.black_box:
                zero[rows] &= arrays['zero']
                not_finite[rows] |= arrays['not_finite']
            if request.keep:
                images[rows[lower]] = arrays['images'][lower] if random else arrays['images']
        if target + 1 == len(targets):
            after.append(share.copy())
    broken = attacked & ~vote(share)
    counts = None if row.black_box else count_gradients(attacked, zero, not_finite)
    return _Done(
        attacked=int(attacked.sum()),
        broken=broken,
        share=share,
        images=images,
        queries=queries,
        distances=distances,
        forward_passes=forward_passes,
        refused=refused,
        largest=largest,
        gradients=counts,
        reached=reached,
        after=np.stack(after),
    )


def further(
    outcome: SearchOutcome,
    search: Search,
    problem: tuple[np.ndarray, ...],
    network: Network,
    threat: Threat,
    confirm: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> SearchOutcome:
    """Offers points beyond the nearest one that a search found, where that was not confirmed.

    That point lies on the decision boundary of the search. In a finer precision, or rounded to bytes, it may
    be on the other side, though the images behind it are misclassified as far as the ball reaches.
    """
    images, labels, keys, aims = problem
    final = outcome.final
    distance = np.asarray(final.distance, np.float64)
    left = np.flatnonzero(~outcome.broken & claimed(final) & (distance <= threat.eps))
    if not len(left):
        return outcome
    given = jnp.asarray(images), jnp.asarray(labels)
    whole = Problem(*given, keys=network.typed(keys), targets=jnp.asarray(aims))
    edge = np.asarray(search.worst(whole, threat, final))
    # Toward the nearest point, and not clipped: pixels that meet their bounds do not hold the others back.
    if hasattr(final, 'nearest'):
        delta = np.asarray(final.nearest) - images
    else:
        delta = np.asarray(final.displacement)
    broken, found, refused = outcome.broken.copy(), np.zeros_like(images), outcome.refused
    found[broken], measured = outcome.images, distance.copy()
    for factor in (*BEYOND, None):  # at last as far as the ball reaches
        points = edge[left]
        if factor is not None:
            beyond = images[left] + np.asarray(factor, images.dtype) * delta[left]
            points = np.asarray(threat.project(jnp.asarray(beyond), jnp.asarray(images[left])))
        sound = confirm(left, points)
        chosen = left[sound]
        broken[chosen], found[chosen], refused = True, points[sound], refused - len(chosen)
        measured[chosen] = threat.ball.length(points[sound] - images[chosen], np)
        left = left[~sound]
        if not len(left):
            break
    final = final._replace(distance=measured.astype(outcome.final.distance.dtype))
    return outcome._replace(broken=broken, images=found[broken], refused=refused, final=final)


def claimed(final: Any) -> np.ndarray:
    """[B] bool, whether a search that measures distances found any misclassified point, by its last state."""
    return np.asarray(final.known) if hasattr(final, 'known') else np.isfinite(final.distance)


def _candidates(stage: Stage, request: Request) -> int:
    """Among how many classes MALT chooses."""
    return min(max(malt.CANDIDATES, stage.targets), request.classes - 1)


def _keys(network: Network, attack: str, numbers: np.ndarray) -> np.ndarray:
    """The data of each image's key in the run of its number, from numbers [N]."""
    first, *others = np.unique(numbers)
    keys = network.keys(int(first), attack)
    for number in others:
        here = numbers == number
        keys[here] = network.keys(int(number), attack)[here]
    return keys


def _targets(
    network: Network, stage: Stage, threat: Threat, unit: str, attacked: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The classes that a targeted search aims at, one after another, and their places by logit: [T, N]."""
    # The label comes first, though the mean logits of a random classifier may favour another class than its
    # votes. Of equal logits the class with the lower number comes first.
    own = np.arange(network.request.classes) == network.labels[:, None]
    logits = np.where(own & network.clean[:, None], np.inf, network.clean_logits)
    ranks = np.argsort(-logits, axis=1, kind='stable')[:, 1:].astype(np.int32)
    order = np.broadcast_to(np.arange(ranks.shape[1]), ranks.shape)
    if stage.choice == 'logits':
        return ranks[:, : stage.targets].T, order[:, : stage.targets].T
    ranks, rows = ranks[:, : _candidates(stage, network.request)], np.flatnonzero(attacked)
    order = order[:, : ranks.shape[1]].copy()
    apply, shared = network.surrogate()

    def distances(weights: Any, images: Any, labels: Any, keys: Any, candidates: Any) -> Any:
        logits = lambda x: apply(weights, x, network.typed(keys)).logits  # noqa: E731
        return malt.distances(logits, images, labels, candidates, threat.ball)

    def measured() -> Arrays:
        given = network.images[rows], network.labels[rows], network.keys(0)[rows], ranks[rows]
        program = network.program(('malt', threat), lambda: compile_rows(distances, network.devices))
        return {'distances': network.map(program, shared, given)}

    if len(rows):
        order[rows] = np.argsort(remember(f'{unit}-malt', measured)['distances'], axis=1, kind='stable')
    return np.take_along_axis(ranks, order, axis=1)[:, : stage.targets].T, order[:, : stage.targets].T


def _search(stage: Stage, request: Request, restart: int = 0) -> Search:
    return stage.search(request.classes, request.threat.norm, restart)


def _table(stage: Stage, done: _Done, request: Request) -> dict[str, Any]:
    """The stage in the result, in JSON's types."""
    row = stage.row
    forward = done.forward_passes
    table: dict[str, Any] = {
        'attack': stage.attack,
        'accuracy': float(np.mean(done.share)),
        'attacked': done.attacked,
        'broken': int(done.broken.sum()),
        'refused': done.refused,
        'iterations': _iterations(stage, request),
        'runs': runs(stage, request),
        'eot_samples': stage.eot_samples,
        'forward_passes': forward,
        'backward_passes': round(forward * row.gradients(request.classes)),
    }
    if stage.choice == 'malt':
        # For the choice of the targets: a forward pass, and a backward pass for each candidate.
        table['forward_passes'] += done.attacked
        table['backward_passes'] += done.attacked * _candidates(stage, request)
    if done.gradients is not None:
        table['gradients'] = done.gradients.shares()
    if row.black_box and done.broken.any():
        spent = done.queries[done.broken]
        table |= {'mean_queries': float(np.mean(spent)), 'median_queries': float(np.median(spent))}
    if row.measures_distance:
        # Images that are misclassified without any attack count as 0.
        table['average_distance'] = average_distance(done.distances)
    return table


def _iterations(stage: Stage, request: Request) -> int:
    """The iterations of one run: steps, where an attack makes steps, or queries."""
    search = _search(stage, request)
    return search.iterations - search.idle


def _protocol(name: str, stages: Sequence[Stage], request: Request) -> dict[str, Any]:
    """The stamp by which a reader knows what ran."""
    return {
        'name': name,
        'cascade': len(stages) > 1 and not request.individual,
        'stages': [
            {
                'attack': stage.attack,
                'iterations': _iterations(stage, request),
                'restarts': stage.restarts,
                'targets': runs(stage, request) // stage.restarts if search.targeted else 0,
                'eot_samples': stage.eot_samples,
                **({'largereps': True} if search.idle > 1 else {}),
                **({'choice': stage.choice} if stage.choice != 'logits' else {}),
            }
            for stage, search in ((stage, _search(stage, request)) for stage in stages)
        ],
        'follows': REFERENCE if name.startswith('autoattack') and name not in VARIANTS else None,
        **({'variant': VARIANTS[name]} if name in VARIANTS else {}),
        **({'screen': SCREENS[name]} if name in SCREENS else {}),
    }
