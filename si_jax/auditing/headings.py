"""The headings under which auditors ask for what an audit checks.

Two catalogues are in use: the AI Risk Management Framework of NIST (NIST AI 100-1, 2023), whose function
MEASURE has numbered subcategories, and article 15 of the EU's AI Act (Regulation (EU) 2024/1689), on
accuracy, robustness and cybersecurity. An entry says under which point a check is evidence. It does not say
that the point is met: that needs more than one measurement, and a judgement.
"""

from collections.abc import Mapping

NIST, EU = 'NIST AI RMF', 'EU AI Act'
# What the points ask for, in short.
POINTS = {
    'MEASURE 2.1': 'test sets, metrics and tools are documented',
    'MEASURE 2.3': 'performance is measured under conditions like those of use',
    'MEASURE 2.5': 'the system is valid and reliable, and limits are documented',
    'MEASURE 2.7': 'security and resilience are evaluated',
    'MEASURE 2.13': 'the measurements themselves are shown to work',
    'Article 15(1)': 'appropriate accuracy and robustness, kept throughout use',
    'Article 15(3)': 'accuracy and its metrics are declared',
    'Article 15(4)': 'resilience against errors, faults and inconsistencies',
    'Article 15(5)': 'resilience against adversarial examples',
}
_STABLE = {NIST: ('MEASURE 2.5',), EU: ('Article 15(1)', 'Article 15(4)')}
_ATTACKED = {NIST: ('MEASURE 2.7',), EU: ('Article 15(5)',)}
_TESTED = {NIST: ('MEASURE 2.7', 'MEASURE 2.13'), EU: ('Article 15(5)',)}
# Name of a check -> catalogue -> points.
HEADINGS: dict[str, Mapping[str, tuple[str, ...]]] = {
    'randomness': _STABLE,  # the same image gets the same answer
    'batch': _STABLE,  # whatever it is shown with
    'outputs': _STABLE,
    'clean': {NIST: ('MEASURE 2.1', 'MEASURE 2.3'), EU: ('Article 15(1)', 'Article 15(3)')},
    # Whether the attack works on this network, so that its number means something.
    'gradients': _TESTED,
    'loss': _TESTED,
    'scale': _TESTED,
    'iterates': _TESTED,
    'eps': _TESTED,
    'steps': _TESTED,
    'restarts': _TESTED,
    'binarization': _TESTED,
    # Whether another attacker, who knows less, gets further.
    'black-box': _ATTACKED,
    'transfer': _ATTACKED,
}


def headings(check: str) -> dict[str, list[str]]:
    """The points under which a check is evidence, by catalogue; {} for one that is not in the table."""
    return {catalogue: list(points) for catalogue, points in HEADINGS.get(check, {}).items()}
