"""Table 1 says what the rows of the defenses are."""

import json

from si_jax import defenses
from si_jax.paper import methods, report


def test_the_rows_are_those_of_the_paper():
    rows = {label: cells for label, *cells in methods.rows()}
    assert rows['at'] == ['adversarial_ce of logits', '1 adversarial_ce of logits',
                          '10 × 0.25 eps, uniform, eval', 'adv']  # fmt: skip
    assert rows['trades + si'][:2] == [
        'adversarial_ce of scaled_cosine(15)',
        '1 natural_ce of logits + 6 kl of logits + 0.2 si_margin_ce of cosine',
    ]
    assert rows['standard'][:1] == ['no attack'] and rows['freeat + si'][:1] == ['the outer objective']
    assert {label for label in rows if ' + ' not in label} == set(defenses.DEFENSES)


def test_report_prints_it_in_every_form():
    rows = methods.rows()
    assert [tuple(row.values()) for row in json.loads(report.run(table='1', json=True))] == rows
    text, grid = report.run(table='1'), report.run(table='1', markdown=True)
    for label, inner, *_ in rows:
        assert f'\n\n{label}\n  the attack climbs:   {inner}\n' in text
        assert f'\n| {label} | {inner} | ' in grid
