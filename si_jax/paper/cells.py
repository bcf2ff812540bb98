"""What a table is made of: rows that are trained or downloaded, columns that are measured."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

NO_OVERRIDES: Mapping[str, Any] = MappingProxyType({})


class Training(NamedTuple):
    """A network that train.py makes.

    Attributes:
        config: A file of configs/, without its ending.
        argument: What follows the file name after a colon; '' for nothing.
        overrides: Dotted field to value, where the row differs from the config.
    """

    config: str
    argument: str = ''
    overrides: Mapping[str, Any] = NO_OVERRIDES


class Download(NamedTuple):
    """A network of other authors: a PyTorch file and the flags of evaluate.py that it needs.

    Attributes:
        file: Its name in the folder of checkpoints.
        flags: Flag to value: `arch`, `normalise`, `variant`, `stated_clean`.
        dataset: The data set that it is evaluated on.
        eps: The radius as typed on the command line.
    """

    file: str
    flags: Mapping[str, str]
    dataset: str = 'cifar10'
    eps: str = '8/255'


class Evaluation(NamedTuple):
    """One call of evaluate.py; everything that is not here is its default.

    Attributes:
        attacks: Names in the table of attacks.
        restarts: Of the PGD family.
        num_examples: The first so many test images; None for all.
        logit_scale: A factor on the logits.
    """

    attacks: tuple[str, ...]
    restarts: int = 1
    num_examples: int | None = None
    logit_scale: float = 1.0


class Column(NamedTuple):
    """What a column shows.

    Attributes:
        title: As the paper has it.
        attack: A name in the table of attacks; '' for clean images.
        statistic: 'accuracy', after all restarts; 'single_run', after the first; 'distance', the average
            distance to the decision boundary; 'best_scale', the lowest accuracy of all logit scales; or
            'collapsed', the share of seeds whose robustness collapsed during training.
        added: Whether the paper lacks it.
    """

    title: str
    attack: str
    statistic: str = 'accuracy'
    added: bool = False

    @property
    def percent(self) -> bool:
        """Whether it is shown in percent; a distance is a fraction of the pixel range."""
        return self.statistic != 'distance'


class Row(NamedTuple):
    """A row.

    Attributes:
        labels: What tells it from the others, from the outermost heading to the method.
        source: Where its network comes from.
        paper: The paper's numbers, as printed there, one a column; None where there is none.
    """

    labels: tuple[str, ...]
    source: Training | Download
    paper: tuple[float | None, ...]


class Table(NamedTuple):
    """A table; `name` is the paper's number of it, or the name of a study.

    The evaluations fill the columns of every row. `pairs` names the rows that are compared image by image,
    each by its labels joined with ', ': (a, b) shows b - a. `screen` has the titles of two columns: a screen,
    and a stronger attack that says on fewer images what the screen leaves.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    evaluations: tuple[Evaluation, ...]
    notes: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    screen: tuple[str, str] | None = None
