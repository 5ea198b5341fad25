"""Diagnostics of losses that compare sequences: preference pairs and contrastive batches."""

from __future__ import annotations

import math

from .findings import FEWEST, Finding
from .history import History

#: The chosen reward's fall over the margin's rise.
MOST_DISPLACEMENT = 0.1
#: How near to ln(batch) a contrastive loss is the loss of a guess, as a share of it.
GUESSING = 0.1
FEWEST_CONTRASTIVE = 20


def likelihood_displacement(history: History) -> Finding | None:
    """Chosen and rejected answers both become less likely."""
    if history.find("score_min") is not None:
        return None  # a reward model: its rewards are scores, not likelihoods
    chosen, rejected = history.find("chosen_reward", at_least=FEWEST), history.find("rejected_reward", at_least=FEWEST)
    if chosen is None or rejected is None:
        chosen = history.find("held_out_chosen_change", at_least=2)
        rejected = history.find("held_out_rejected_change", at_least=2)
    if chosen is None or rejected is None:
        return None
    fall, other = chosen.early - chosen.late, rejected.early - rejected.late
    if fall <= 0 or other <= 0 or fall <= MOST_DISPLACEMENT * (other - fall):
        return None
    return Finding(
        "warning",
        "Chosen answers become less likely too",
        f"{chosen.name} went from {chosen.early:.3g} to {chosen.late:.3g}, {rejected.name} from {rejected.early:.3g} to "
        f"{rejected.late:.3g}: the margin rises because the rejected ones fall faster",
        "Add the chosen answers' likelihood (cpo or orpo, or a mixture with cross_entropy); raise beta; lower the learning "
        "rate; drop pairs whose answers are nearly the same.",
        "The probability goes to answers that are in no pair: Razin et al. 2024, arXiv:2410.08847; Pal et al. 2024, "
        "arXiv:2402.13228. A fall of over a tenth of the margin's rise is our choice.",
    )


def contrastive_guessing(history: History) -> Finding | None:
    """A contrastive loss no better than a guess among the batch's documents."""
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
    return Finding(
        "warning",
        "The embeddings tell nothing apart",
        f"the loss is {loss.late:.3g} at the end; guessing among {documents:.0f} documents gives ln {documents:.0f} = "
        f"{guess:.3g}",
        "Raise the learning rate; lower the temperature (0.05 or less); check that pairs are in order (query, its "
        "document) and that pooling is the model's own.",
        "The cross-entropy of equal similarities over n documents is exactly ln n; within 10 % of it is our choice.",
    )
