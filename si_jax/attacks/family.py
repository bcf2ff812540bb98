"""The PGD family by name: one row each.

Its attacks take steps, step size and restarts from the caller, run on every image, count the final iterate,
and share their random starts: run after run, attacks and models are compared on the same noise.

Some attacks are blind to the scale of the logits but decide as they do. Sources: LAFEAT (Yu et al., CVPR
2021) and MIFPE (Yu and Xu, CVPR 2023) divide the logits of each iterate by the gap of the two highest;
T-MIFPE (2025, arXiv 2507.22428) derives a factor for it from the errors of floating point; PMA (Xie et al.,
2024, arXiv 2411.15210) raises the margin of probabilities; MD (Ma et al., 2020, arXiv 2006.13726) raises one
term of the margin at a time.
"""

from si_jax import objectives
from si_jax.attacks.pgd import Attack, from_original, from_signs
from si_jax.objectives import adversarial_ce, dlr, margin
from si_jax.outputs import SI_SCALE, logits, over_top_gap, scaled_by_gap, scaled_cosine

ATTACKS: dict[str, Attack] = {
    'fgsm': Attack(adversarial_ce, logits, start=from_original, steps=1, step_size=1.0),
    'pgd': Attack(adversarial_ce, logits),
    'cw': Attack(margin, logits),
    'dlr': Attack(dlr, logits),
    'sipgd': Attack(adversarial_ce, scaled_cosine(SI_SCALE)),
    # As blind to the scale of the logits as `sipgd`, but the score decides as the logits do.
    'pgd-gap': Attack(adversarial_ce, scaled_by_gap),
    # The loss of MIFPE with T = 1, and that of PMA.
    'pgd-mifpe': Attack(adversarial_ce, over_top_gap),
    'pgd-pm': Attack(objectives.probability_margin, logits),
    # One scale for all images and iterates, so that losses can be compared; LAFEAT and MIFPE scale each.
    'pgd-cal': Attack(adversarial_ce, logits, calibrated=True),
    'pgd-hybrid': Attack(
        adversarial_ce, scaled_by_gap, then=margin, step_size=2.0, cosines=1, any_iterate=True
    ),
    # MD of Ma et al. (2020): one term of the margin, which alternates over the restarts, and then the margin;
    # the step size falls from 2 eps in each half. Two restarts are one attack of theirs.
    'pgd-md': Attack(
        objectives.minus_label,
        logits,
        then=margin,
        odd=objectives.highest_other,
        step_size=2.0,
        cosines=2,
        any_iterate=True,
    ),
    # Sriramanan et al. (2020); settings of repository val-iisc/GAMA-GAT: GAMA-PGD.
    'gama': Attack(
        objectives.gama(),
        start=from_signs,
        steps=100,
        step_size=2.0,
        drops=(60, 85),
        reference='start',
    ),
}
