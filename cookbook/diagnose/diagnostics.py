"""All diagnostics, and their results for a run."""

from __future__ import annotations

from . import comparison_checks, data_checks, policy_checks, training_checks
from .diagnosis import Diagnosis, Diagnostic
from .history import History

#: In the order in which they are shown within a level.
DIAGNOSTICS: tuple[Diagnostic, ...] = (
    training_checks.non_finite,
    training_checks.worse_though_loss_falls,
    data_checks.held_out_in_training,
    policy_checks.no_reward,
    policy_checks.sampler_mismatch,
    policy_checks.rising_kl,
    policy_checks.entropy_collapse,
    policy_checks.much_clipped,
    policy_checks.never_clipped,
    policy_checks.level_groups,
    policy_checks.truncated_answers,
    comparison_checks.likelihood_displacement,
    comparison_checks.contrastive_guessing,
    training_checks.overfitting,
    training_checks.gradient_spikes,
    data_checks.truncated_rows,
    data_checks.dropped_rows,
    data_checks.repeated_rows,
    policy_checks.length_drift,
    training_checks.always_clipped,
    data_checks.unread_keys,
)
_ORDER = ("problem", "warning", "note")


def diagnose(history: History) -> list[Diagnosis]:
    """Everything that looks wrong in a run, the worst first."""
    diagnoses = [diagnosis for check in DIAGNOSTICS if (diagnosis := check(history)) is not None]
    return sorted(diagnoses, key=lambda diagnosis: _ORDER.index(diagnosis.level))
