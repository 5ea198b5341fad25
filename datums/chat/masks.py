"""Datums from conversations: the chat template decides the tokens, `train_on` which turns are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ..builders.tokens import WeightReduction, datum_from_tokens_weights
from ..builders.truncation import Truncation
from ..errors import EmptyLossError, MessageError, TemplateError, did_you_mean
from ..types import Datum
from .messages import check_messages, text_parts
from .template import ChatTemplate, check_tools_rendered, derived_mask, turn_span

#: Which turns are learned: every answer, only the last one, or every token of the conversation.
TrainOn = Literal["all_assistant", "last_assistant", "all"]

_PROBE = (
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "It is five."},
    {"role": "user", "content": "And 2 * 4?"},
    {"role": "assistant", "content": "That is eight."},
)


def datum_from_messages(
    messages: Any,
    tokenizer: Any,
    *,
    train_on: TrainOn | int = "all_assistant",
    max_length: int | None = None,
    truncation: Truncation = "error",
    reduction: WeightReduction = "none",
    template_options: Mapping[str, Any] | None = None,
) -> Datum:
    """A datum that learns what the assistant says, with the token that ends its turn.

    messages          [{"role": ..., "content": ...}, ...]; an assistant's may have a "weight", any real number, that its
                      tokens get instead of 1
    tokenizer         a transformers tokenizer with a chat template
    train_on          "all_assistant", "last_assistant", the index of a message (the answers from there on), or "all"
                      for every token whoever wrote it
    max_length, truncation, reduction    as in `datum_from_tokens_weights`
    template_options  passed to the chat template: {"tools": [...], "enable_thinking": False}

    The mask comes from the template's `{% generation %}` marks; without them it is derived by rendering the
    beginnings of the conversation, and verified. Control tokens that a user, system or tool message holds as text
    stay text. Raises MessageError (naming the message), TemplateError (no trustworthy mask), EmptyLossError (no
    assistant turn), TruncationError.
    """
    if not isinstance(train_on, int) and train_on not in get_args(TrainOn):
        known = ", ".join(get_args(TrainOn))
        hint = did_you_mean(str(train_on), get_args(TrainOn))
        raise MessageError(f"unknown train_on {train_on!r}; known are {known} and a message's index.{hint}")
    template = ChatTemplate(tokenizer, template_options or {})
    checked = check_messages(messages)
    given = {index: message.pop("weight") for index, message in enumerate(checked) if "weight" in message}
    template, checked = template.guarded(checked)
    check_tools_rendered(template, checked)
    tokens, mask = _tokens_and_mask(template, checked, train_on)
    weights = mask.astype(np.float32)
    if given:
        _weigh_turns(template, checked, tokens, weights, given, train_on)
    return datum_from_tokens_weights(tokens, weights, max_length, reduction, truncation=truncation)


@dataclass(frozen=True)
class TemplateCheck:
    """What `check_template` found in a template that passed.

    marks_generation: whether it has `{% generation %}` marks. stop_token: the text of the token that ends an answer.
    trained, total: label tokens and all tokens of the conversation it was tried on.
    """

    marks_generation: bool
    stop_token: str
    trained: int
    total: int


def check_template(tokenizer: Any, *, template_options: Mapping[str, Any] | None = None) -> TemplateCheck:
    """Try a tokenizer's chat template on a conversation of two turns. Raises TemplateError listing all that is wrong.

    It must preserve prefixes, mask neither nothing nor everything, let the whole answer and the token that ends it
    be learned and nothing the user says, and its tokens must decode to the text it rendered.
    """
    template = ChatTemplate(tokenizer, template_options or {})
    text = template.render(_PROBE)
    whole = template.encode(text)
    problems: list[str] = []
    mask = np.zeros(len(whole), dtype=bool)
    stop = 0
    try:
        mask = _tokens_and_mask(template, _PROBE, "all_assistant")[1]
        problems += _mask_problems(template, whole, mask)
        for turn in (1, 3):
            stop = turn_span(template, _PROBE, whole, turn)[1] - 1
            problems += _stop_problems(template, whole[stop], bool(mask[stop]), turn)
    except TemplateError as error:
        problems.append(str(error))
    if "".join(tokenizer.decode(whole).split()) != "".join(text.split()):  # SentencePiece may add spaces
        problems.append("its tokens do not decode to the text it rendered")
    if problems:
        raise TemplateError("the chat template cannot be trained with: " + "; ".join(problems))
    stop_token = tokenizer.convert_ids_to_tokens(whole[stop])
    return TemplateCheck(template.marks_generation, stop_token, int(mask.sum()), len(whole))


def _tokens_and_mask(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], train_on: TrainOn | int
) -> tuple[list[int], np.ndarray]:
    if train_on == "all":
        tokens = template.tokens(messages)
        return tokens, np.ones(len(tokens), dtype=bool)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if isinstance(train_on, int):
        turns = [turn for turn in turns if turn >= train_on]
    if not turns:
        since = f" from message {train_on} on" if isinstance(train_on, int) else ""
        raise EmptyLossError(
            f"none of the {len(messages)} messages{since} is the assistant's, so there is nothing to learn"
        )
    first = turns[-1] if train_on == "last_assistant" else turns[0]
    if template.marks_generation:
        tokens, mask = template.marked(messages)
        everything = bool(mask.all())
        if any(message["role"] == "assistant" for message in messages[:first]):
            _leave_out_earlier(template, messages[:first], tokens, mask)
    else:
        tokens = template.tokens(messages)
        mask = derived_mask(template, messages, tokens, [turn for turn in turns if turn >= first])
        everything = bool(mask.all())
    if not mask.any():
        raise TemplateError("the chat template's {% generation %} marks enclose no token of this conversation")
    if everything:
        raise TemplateError("the mask covers every token, prompts too; say train_on='all' if that is meant")
    return tokens, mask


def _leave_out_earlier(
    template: ChatTemplate, earlier: Sequence[Mapping[str, Any]], tokens: list[int], mask: np.ndarray
) -> None:
    """Clear the mask for the turns that the earlier messages have on their own."""
    there = _where_marked(template, earlier, tokens, mask)
    if there is None:
        raise TemplateError(
            "the chat template renders earlier answers differently once others follow, so they cannot be told "
            "apart. Use train_on='all_assistant'"
        )
    mask[there] = False


def _where_marked(
    template: ChatTemplate, beginning: Sequence[Mapping[str, Any]], tokens: list[int], mask: np.ndarray
) -> np.ndarray | None:
    """Where, of the whole conversation's tokens and marks, those of its beginning are; None if they are not there."""
    alone, marked = template.marked(beginning)
    there = np.flatnonzero(mask)[: int(marked.sum())]
    return there if [tokens[i] for i in there] == [alone[i] for i in np.flatnonzero(marked)] else None


def _weigh_turns(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    tokens: list[int],
    weights: np.ndarray,
    given: Mapping[int, float],
    train_on: TrainOn | int,
) -> None:
    """Multiply the weights of turns that were given one; `given` is by message index."""
    if train_on == "all":
        raise MessageError(
            "messages with a weight say which turns are learned, and so does train_on='all'; use one of them"
        )
    for turn, weight in given.items():
        if weight != 1 and messages[turn]["role"] == "assistant":
            weights[_turn_positions(template, messages, tokens, turn)] *= weight
    if not weights.any():
        raise EmptyLossError("every answer that could be learned has the weight 0, so there is nothing to learn")


def _turn_positions(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], tokens: list[int], turn: int
) -> slice | np.ndarray:
    """Where the tokens of an assistant's turn are."""
    if not template.marks_generation:
        return slice(*turn_span(template, messages, tokens, turn))
    everywhere = template.marked(messages)[1]
    through = _where_marked(template, messages[: turn + 1], tokens, everywhere)
    before = _where_marked(template, messages[:turn], tokens, everywhere) if turn else np.zeros(0, np.int64)
    if through is None or before is None:
        raise TemplateError(
            f"the chat template renders answers up to message {turn} differently once others follow, so its weight "
            "cannot be placed"
        )
    return through[len(before) :]


def _mask_problems(template: ChatTemplate, whole: list[int], mask: np.ndarray) -> list[str]:
    learned = template.tokenizer.decode([token for token, m in zip(whole, mask, strict=True) if m])
    problems: list[str] = []
    for message in _PROBE:
        (content,) = text_parts(message["content"])
        if message["role"] == "assistant" and content not in learned:
            problems.append(f"the answer {content!r} is not wholly inside the mask")
        if message["role"] == "user" and content in learned:
            problems.append(f"the user's {content!r} is inside the mask")
    return problems


def _stop_problems(template: ChatTemplate, stop: int, learned: bool, turn: int) -> list[str]:
    """What is wrong with the last token of an assistant's turn."""
    if stop not in template.control_ids:
        return [f"no control token ends the answer in message {turn}, so a model would not learn to stop"]
    if not learned:
        return [
            f"the token that ends the answer in message {turn}, {template.describe(stop)}, is outside the mask, so a "
            "model would not learn to stop"
        ]
    return []
