"""Table 1 of the paper, from the code: what each defense's attack climbs, and what training minimises."""

import contextlib
import json
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from si_jax import defenses, objectives
from si_jax.errors import InputError

HEAD = ('row', 'the attack climbs', 'training minimises', 'steps, start, BN', 'passes')
INTRO = (
    'Table 1. The defenses as the code has them, each with its SI form, and with hypersphere embedding '
    '(HE) where there is one. Objectives are functions of si_jax/objectives.py, scores of '
    'si_jax/outputs.py; docs/defenses.md says where each comes from.'
)


def named(objective: Any) -> str:
    """The name of an objective in si_jax.objectives; of one that was made there, the maker's."""
    for name, value in vars(objectives).items():
        if value is objective:
            return name
    return objective.loss.__qualname__.split('.')[0]


def of_score(score: Callable[..., Any]) -> str:
    """What a score is computed from."""
    name, *inner = score.__qualname__.split('.')
    if not inner:
        return name
    (scale,) = [cell.cell_contents for cell in score.__closure__ or ()]
    return f'{name}({scale:g})'


def rows(code: Callable[[str], str] = str) -> list[tuple[str, ...]]:
    """A row for each form of each defense, under `HEAD`; `code` marks the names of functions."""
    found = []
    for name, plain in defenses.DEFENSES.items():
        forms = {name: plain}
        for suffix, make in (('si', defenses.with_si), ('he', defenses.with_he)):
            with contextlib.suppress(InputError):
                forms[f'{name} + {suffix}'] = make(plain)
        found += [(label, *_row(row, code)) for label, row in forms.items()]
    return found


def _row(row: defenses.Defense, code: Callable[[str], str]) -> tuple[str, ...]:
    inner, attack = 'the outer objective' if row.persistent else 'no attack', ''
    if row.inner is not None:
        inner = f'{code(named(row.inner))} of {code(of_score(row.inner_score))}'
        inner += ''.join(f' + {term.weight:g} {code(key)}' for key, term in row.inner_terms.items())
        attack = f'{row.steps} × {row.step_size:g} eps, {_started(row)}, {row.attack_bn}'
    outer = ' + '.join(
        f'{term.weight:g} {code(key)} of {_compared(term, code)}' for key, term in row.outer.items()
    )
    return inner, outer, attack, ', '.join((*row.before, *row.passes))


def _started(row: defenses.Defense) -> str:
    """Where an attack starts, and where its steps may lead if it is not the ball."""
    radius = '' if row.start_radius == 1 else f' of {row.start_radius:g} eps'
    bounds = {'ball': '', 'pixels': ', cut to [0, 1] alone', 'none': ', not cut'}[row.bounds]
    return f'{row.start}{radius}{bounds}'


def _compared(term: defenses.Term, code: Callable[[str], str]) -> str:
    """What a term is computed from."""
    if term.of_gradients or term.of_segment:
        return 'gradients' if term.of_gradients else 'losses along segments'
    return code(of_score(term.score))


def grid(head: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    head = list(head)
    shown = [head, ['---'] * len(head), *(list(map(str, line)) for line in lines)]
    return '\n'.join(f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in line)} |' for line in shown)


def show(*, markdown: bool = False, as_json: bool = False) -> str:
    """Table 1 as text, as Markdown or as JSON."""
    if as_json:
        return json.dumps([dict(zip(HEAD, row, strict=True)) for row in rows()], indent=2, ensure_ascii=False)
    if markdown:
        return f'{INTRO}\n\n{grid(HEAD, rows())}'
    blocks = [textwrap.fill(INTRO, 80)]
    for label, *cells in rows():
        lines = [f'  {what + ":":<20} {cell}' for what, cell in zip(HEAD[1:], cells, strict=True) if cell]
        blocks.append('\n'.join([label, *lines]))
    return '\n\n'.join(blocks)
