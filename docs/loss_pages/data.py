"""What data a loss needs, in the words of somebody who has data: told from what the loss reads. make_loss_pages.py uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lossbook.losses import Loss, LossCard
from lossbook.losses.cards.sample_inputs import groups, usable
from lossbook.losses.registry import spec_of

from .aims import AIMS


@dataclass(frozen=True)
class DataKind:
    """One form that data has. row: an example; fits: whether a loss learns from it; command: what trains on a file of it."""

    title: str
    says: str
    row: str
    fits: Callable[[LossCard], bool]
    command: str = ""


#: What a loss reads beside the data's own form, as a person would say it.
ALSO = {
    "sampling_logprobs": "logprobs kept when sampling",
    "ref_logprobs": "a reference model",
    "teacher_logprobs": "",
    "advantages": "",
    "returns": "",
    "label": "",
    "old_values": "values kept when sampling",
    "margin": "a margin per pair",
    "teacher_score": "a teacher's scores",
    "is_mismatched": "answers of other rows (optional)",
    "document_id": "ids of documents (optional)",
    "group": "",
    "class_id": "",
    "teacher_embedding": "",
    "guide_embedding": "vectors of a guide, an encoder that is good already",
    "shift": "the mean reward so far (optional)",
    "is_positive": "which candidates are relevant",
    "span_logprobs": "",
    "teacher_span_logprobs": "",
}


def _is_auxiliary(card: LossCard) -> bool:
    return "Auxiliary, to be added to another loss" in f"{card.formula} {card.description}"


def _reads(card: LossCard, *names: str) -> bool:
    return all(name in card.inputs or name in card.outputs for name in names)


def _size(card: LossCard) -> int:
    """How many texts belong together in a loss over embeddings."""
    loss = usable(card.name)
    return len(groups(loss, 6)[0]) if isinstance(loss, Loss) else 2


KINDS = (
    DataKind(
        "Answers to imitate",
        "Prompts and answers, conversations, or plain text.",
        '{"prompt": "2 + 2 = ", "completion": "4"}',
        lambda card: card.per == "token" and not card.inputs and _reads(card, "logprobs") and not _is_auxiliary(card),
        "lossbook train sft --data train.jsonl --loss {loss}",
    ),
    DataKind(
        "Pairs of answers, one better than the other",
        "Two answers to the same prompt.",
        '{"prompt": "2 + 2 = ", "chosen": "4", "rejected": "5"}',
        lambda card: card.per == "pair" and _reads(card, "logprobs") and not _is_auxiliary(card),
        "lossbook train dpo --data pairs.jsonl --loss {loss}",
    ),
    DataKind(
        "Pairs of answers, for a reward model",
        "The same pairs; what is trained is a score.",
        '{"prompt": "2 + 2 = ", "chosen": "4", "rejected": "5"}',
        lambda card: card.per == "pair" and _reads(card, "values"),
        "lossbook train reward --data pairs.jsonl --loss {loss}",
    ),
    DataKind(
        "Single answers marked good or bad",
        "One answer per prompt, with a label: true or 1 for good.",
        '{"prompt": "2 + 2 = ", "completion": "5", "label": false}',
        lambda card: _reads(card, "logprobs", "label"),
        "lossbook train dpo --data labelled.jsonl --loss {loss}",
    ),
    DataKind(
        "Prompts, and a reward for what the model answers",
        "The model samples answers; a verifier, a reward model or your own function gives each a reward, of which advantages are made.",
        '{"prompt": "2 + 2?", "answer": "4"}',
        lambda card: _reads(card, "advantages"),
        "lossbook train rl --data prompts.jsonl --loss {loss}",
    ),
    DataKind(
        "A teacher beside the student",
        "Texts, given or sampled by the student. The teacher is a second model, whose whole distribution at each position is read.",
        '{"prompt": "2 + 2 = ", "completion": "4"}',
        lambda card: spec_of(card.name).reads_vocabulary,
        "lossbook train distill --data train.jsonl --teacher runs/teacher --loss {loss}",
    ),
    DataKind(
        "A teacher's most likely tokens",
        "Texts, given or sampled by the student, and for each position the teacher's logprobs of K candidates.",
        '{"prompt": "2 + 2 = ", "completion": "4"}',
        lambda card: spec_of(card.name).candidates is not None,
        "lossbook train distill --data train.jsonl --teacher runs/teacher --loss {loss}",
    ),
    DataKind(
        "A teacher's logprobs of the student's samples",
        "The student samples; the teacher says how likely each sampled token is to it.",
        '{"prompt": "2 + 2 = "}',
        lambda card: _reads(card, "teacher_logprobs"),
        "lossbook train distill --data prompts.jsonl --teacher runs/teacher --mode on_policy --loss {loss}",
    ),
    DataKind(
        "A query and its candidates",
        "A query with documents of which it is known which are relevant, or how much; what is trained is a score.",
        '{"query": "a text", "positive": "a text that answers it", "negatives": ["a text that does not"]}',
        lambda card: card.family == "ranking",
        "lossbook train rerank --data candidates.jsonl --loss {loss}",
    ),
    DataKind(
        "Values and returns",
        "Samples with the return from each token on, for a value function.",
        "",
        lambda card: _reads(card, "values", "returns"),
    ),
    DataKind(
        "An anchor, a text like it, and one that is not",
        "Three texts. The datums of a call are B anchors (or queries), then their B positives, then their B negatives.",
        '{"query": "a text", "positive": "a text that belongs to it", "negative": "a text that does not"}',
        lambda card: _reads(card, "embeddings") and _size(card) == 3,
        "lossbook train embed --data triplets.jsonl --loss {loss}",
    ),
    DataKind(
        "Texts with classes",
        "Each text has the id of its class; a batch holds several texts of each of some classes.",
        "",
        lambda card: _reads(card, "embeddings", "class_id"),
    ),
    DataKind(
        "Texts, and a teacher's vectors",
        "Each text with the vector that a larger encoder gives it.",
        "",
        lambda card: _reads(card, "embeddings", "teacher_embedding"),
    ),
    DataKind(
        "Two texts with a label or a score",
        "Each pair has a number: 1 for the same and 0 for different, or a similarity. Datums 2i and 2i + 1 are a pair.",
        '{"query": "a text", "positive": "another text", "label": 0.8}',
        lambda card: _reads(card, "embeddings", "label"),
        "lossbook train embed --data scored.jsonl --loss {loss}",
    ),
    DataKind(
        "Two texts that belong together",
        "Questions and answers, queries and documents, two views of a text; the rest of the batch are the negatives.",
        '{"query": "a text", "positive": "a text that belongs to it"}',
        lambda card: _reads(card, "embeddings") or _reads(card, "token_embeddings"),
        "lossbook train embed --data texts.jsonl --loss {loss}",
    ),
    DataKind(
        "Added to another loss",
        "A term that does not teach by itself; it reads what the loss reads that it is added to.",
        "",
        _is_auxiliary,
    ),
    DataKind("Other data", "What these read is on their cards.", "", lambda card: True),
)


def kind_of_data(card: LossCard) -> DataKind:
    """The first kind of data that a loss learns from."""
    return next(kind for kind in KINDS if kind.fits(card))


def also_needs(card: LossCard) -> str:
    """What a loss needs beside data of its kind; "" for nothing."""
    needs = []
    for tensor in card.inputs.values():
        said = ALSO.get(tensor.name, f"`{tensor.name}`")
        if said and "(optional)" not in said and tensor.required is not True:
            said += " (optional)" if tensor.required is False else f", unless `{tensor.required}` is 0"
        needs += [said] if said else []
    return "; ".join(needs)


def needs_data_like(card: LossCard) -> Iterator[str]:
    """The paragraph of a loss's own section, with a row of data and the command that trains on such rows."""
    kind = kind_of_data(card)
    also = also_needs(card)
    yield f"**Needs data like** [{kind.title[0].lower()}{kind.title[1:]}](which-loss.md#{anchor(kind.title)})" + (
        f"; also {also}." if also else "."
    )
    yield ""
    if kind.row:
        yield from ("```json", kind.row, "```", "")


def which_loss(cards: Sequence[LossCard]) -> Iterator[str]:
    """The page "Which loss for my data": a table from data to losses, one from data and aim, and a section for each form."""
    families = {card.name: card.family for card in cards}
    by_kind = {kind.title: [card for card in cards if kind_of_data(card) is kind] for kind in KINDS}
    yield "Find the form of your data, then read when each loss is used. Where you are not sure, take the first of a table: it is "
    yield "the usual one. Every loss has a section of its own with formula, settings, curve and code: [all losses](README.md)."
    yield ""
    yield from ("| you have | losses |", "|---|---|")
    for title, members in by_kind.items():
        if members:
            yield f"| [{title}](#{anchor(title)}) | {', '.join(f'`{card.name}`' for card in members)} |"
    yield from ("", "## By what you want", "", "| you have | you want | losses |", "|---|---|---|")
    for title, aims in AIMS.items():
        for i, (aim, names) in enumerate(aims):
            linked = ", ".join(f"[`{name}`]({families[name]}.md#{anchor(name)})" for name in names)
            yield f"| {f'[{title}](#{anchor(title)})' if i == 0 else ''} | {aim} | {linked} |"
    yield ""
    for kind in KINDS:
        if members := by_kind[kind.title]:
            yield from _kind(kind, sorted(members, key=_usual_first))


def _usual_first(card: LossCard) -> tuple[bool, str]:
    is_usual = any(word in card.when_to_use for word in ("default", "usual choice", "usual first choice"))
    return not is_usual, card.name


def _kind(kind: DataKind, members: Sequence[LossCard]) -> Iterator[str]:
    yield from (f"## {kind.title}", "", kind.says, "")
    if kind.row:
        yield from ("```json", kind.row, "```", "")
    if kind.command:
        yield from ("```bash", kind.command.format(loss=members[0].name), "```", "")
    needs = any(map(also_needs, members))
    yield f"| loss | {'also needs | ' if needs else ''}when to use it |"
    yield f"|---|{'---|' if needs else ''}---|"
    for card in members:
        use = card.when_to_use or card.formula
        yield f"| [`{card.name}`]({card.family}.md#{anchor(card.name)}) |{f' {also_needs(card)} |' if needs else ''} {use} |"
    yield ""


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")
