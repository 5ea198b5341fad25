"""Diagnostics of losses that compare sequences: preference pairs and contrastive batches."""

from __future__ import annotations

import math

from .advice import advice, lower_learning_rate, now, number_of_loss, other_losses
from .diagnosis import FEWEST, Diagnosis
from .history import History

#: The fall of the chosen reward, as a share of the margin's rise.
MOST_DISPLACEMENT = 0.1
#: A contrastive loss within this share of ln(documents) is the loss of a guess.
GUESSING = 0.1
FEWEST_CONTRASTIVE = 20
#: Of cosines: sentence-transformers' scale of 20.
USUAL_TEMPERATURE = 0.05


def likelihood_displacement(history: History) -> Diagnosis | None:
    """Chosen and rejected answers both become less likely."""
    if history.find("score_min") is not None:
        return None  # a reward model: its rewards are scores, not likelihoods
    chosen, rejected = history.find("chosen_reward", at_least=FEWEST), history.find("rejected_reward", at_least=FEWEST)
    if chosen is None or rejected is None:
        chosen = history.find("held_out_chosen_change", at_least=2)
        rejected = history.find("held_out_rejected_change", at_least=2)
    if chosen is None or rejected is None:
        return None
    chosen_fall, rejected_fall = chosen.early - chosen.late, rejected.early - rejected.late
    if min(chosen_fall, rejected_fall) <= 0 or chosen_fall <= MOST_DISPLACEMENT * (rejected_fall - chosen_fall):
        return None
    return Diagnosis(
        "warning",
        "Chosen answers become less likely too",
        f"{chosen.name} fell from {chosen.early:.3g} to {chosen.late:.3g}, {rejected.name} from {rejected.early:.3g} to "
        f"{rejected.late:.3g}: the margin rises only because the rejected answers fall faster",
        advice(
            f"add the likelihood of the chosen answers ({_likelihoods(history)})",
            f"raise beta (now {beta:g})" if (beta := number_of_loss(history, "beta")) is not None else "raise beta",
            lower_learning_rate(history),
            "drop pairs with nearly equal answers",
        ),
        "The probability moves to answers outside the pairs: Razin et al. 2024, arXiv:2410.08847; Pal et al. 2024, "
        "arXiv:2402.13228. The threshold, a tenth of the margin's rise, is our choice.",
    )


def _likelihoods(history: History) -> str:
    """Losses that add it, without the run's own."""
    others = other_losses(history, "cpo", "orpo")
    if "cross_entropy" in history.loss_names():
        return f"a larger factor of cross_entropy, {others}"
    return f"{others}, or a mixture with cross_entropy"


def contrastive_guessing(history: History) -> Diagnosis | None:
    """A contrastive loss no better than a guess among the documents of the batch."""
    loss = history.find("loss", at_least=FEWEST_CONTRASTIVE)
    datums = history.find("datums", at_least=FEWEST_CONTRASTIVE)
    is_cross_entropy = history.find("query_to_document") is not None or history.settings.get("loss") in (
        "info_nce",
        "multiple_negatives_ranking",
    )
    if loss is None or datums is None or not is_cross_entropy or history.find("in_batch_recall_at_1") is None:
        return None
    documents = datums.late / 2
    guess = math.log(documents) if documents > 1 else 0.0
    if not guess or abs(loss.late - guess) > GUESSING * guess:
        return None
    return Diagnosis(
        "warning",
        "The embeddings do not tell documents apart",
        f"the loss is {loss.late:.3g} at the end; a guess among {documents:.0f} documents gives ln {documents:.0f} = "
        f"{guess:.3g}",
        advice(
            f"raise the learning rate{now(history, 'learning_rate')}",
            _colder(history),
            "check that pairs are ordered as (query, document) and that the pooling is the model's own",
        ),
        "With equal similarities to n documents the cross-entropy is exactly ln n. The threshold of 10 % is our choice.",
    )


def _colder(history: History) -> str | None:
    """A usual temperature, or scale (1 / temperature), where the run's is higher; None where it is as low."""
    temperature, scale = number_of_loss(history, "temperature"), number_of_loss(history, "scale")
    if scale is not None:
        return f"raise scale (now {scale:g}) to {1 / USUAL_TEMPERATURE:g}" if scale < 1 / USUAL_TEMPERATURE else None
    if temperature is None:
        return f"lower the temperature ({USUAL_TEMPERATURE:g} or less)"
    is_high = temperature > USUAL_TEMPERATURE
    return f"lower temperature (now {temperature:g}) to {USUAL_TEMPERATURE:g} or less" if is_high else None
