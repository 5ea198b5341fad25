"""Datums from conversations. The chat template gives the tokens; `train_on` says which turns are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from ..builders.tokens import WeightReduction, datum_from_tokens_weights
from ..builders.truncation import Truncation
from ..choices import TrainOn
from ..errors import EmptyLossError, MessageError, TemplateError, did_you_mean
from ..keywords import explained
from ..types import Datum
from .messages import check_messages, text_parts
from .omissions import check_rendered, with_readable_arguments
from .template import ChatTemplate, decoded, derived_mask, turn_span

#: What is learned: every answer, the last one only, or every token of the conversation.

_PROBE = (
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "It is five."},
    {"role": "user", "content": "And 2 * 4?"},
    {"role": "assistant", "content": "That is eight."},
)


@explained
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
    """A datum that learns the assistant's text and the token that ends each of its turns.

    messages          [{"role": ..., "content": ...}, ...]; an assistant's message may have a "weight", any real number,
                      in place of 1 for its tokens, or "trainable": false ("train", "training", "loss"), which is weight 0
    tokenizer         a transformers tokenizer with a chat template
    train_on          "all_assistant", "last_assistant", a message's index (the answers from there on), or "all" for
                      every token
    max_length, truncation, reduction    as in `datum_from_tokens_weights`
    template_options  passed to the chat template: {"tools": [...], "enable_thinking": False}

    The mask comes from the template's `{% generation %}` marks. Without marks it is derived by rendering the beginnings
    of the conversation, and verified. Control tokens in the text of a user, system or tool message stay text. Arguments
    of tool calls may be objects or JSON texts; the template gets those that it writes as JSON.

    Raises MessageError (naming the message), TemplateError (no trustworthy mask, or a part that the template leaves out),
    EmptyLossError (no assistant turn), TruncationError.
    """
    if not isinstance(train_on, int) and train_on not in get_args(TrainOn):
        known = ", ".join(get_args(TrainOn))
        hint = did_you_mean(str(train_on), get_args(TrainOn))
        raise MessageError(f"unknown train_on {train_on!r}; known are {known} and a message's index.{hint}")
    template = ChatTemplate(tokenizer, template_options or {})
    checked = check_messages(messages)
    turn_weights = {index: message.pop("weight") for index, message in enumerate(checked) if "weight" in message}
    checked = with_readable_arguments(template, checked)
    guarded, texts = template.guarded(checked)
    tokens, mask = _tokens_and_mask(guarded, texts, train_on)
    weights = mask.astype(np.float32)
    if turn_weights:
        _weigh_turns(guarded, texts, tokens, weights, turn_weights, train_on)
    check_rendered(template, checked, _learned(checked, train_on, turn_weights))
    return datum_from_tokens_weights(tokens, weights, max_length, reduction, truncation=truncation)


def _learned(
    messages: Sequence[Mapping[str, Any]], train_on: TrainOn | int, turn_weights: Mapping[int, float]
) -> list[int]:
    """The indices of the messages that are learned."""
    if train_on == "all":
        return list(range(len(messages)))
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    chosen = turns[-1:] if train_on == "last_assistant" else turns
    since = train_on if isinstance(train_on, int) else 0
    return [turn for turn in chosen if turn >= since and turn_weights.get(turn, 1) != 0]


@dataclass(frozen=True)
class TemplateCheck:
    """The result of `check_template` for a template that passed.

    marks_generation: whether it has `{% generation %}` marks. stop_token: the text of the token that ends an answer.
    trained, total: label tokens and all tokens of the test conversation.
    """

    marks_generation: bool
    stop_token: str
    trained: int
    total: int


@explained
def check_template(tokenizer: Any, *, template_options: Mapping[str, Any] | None = None) -> TemplateCheck:
    """Try a tokenizer's chat template on a test conversation. Raises TemplateError that lists every problem.

    The template must preserve prefixes. Its mask must cover each whole answer and the token that ends it, and none of
    the user's text. Its tokens must decode to the rendered text.
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
    if "".join(decoded(whole, tokenizer).split()) != "".join(text.split()):  # SentencePiece may add spaces
        problems.append("its tokens do not decode to the rendered text")
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
        raise TemplateError("the mask covers every token, prompts included; pass train_on='all' if you want that")
    return tokens, mask


def _leave_out_earlier(
    template: ChatTemplate, earlier: Sequence[Mapping[str, Any]], tokens: list[int], mask: np.ndarray
) -> None:
    """Clear the mask at the turns of the earlier messages."""
    positions = _marked_positions(template, earlier, tokens, mask)
    if positions is None:
        raise TemplateError(
            "the chat template renders earlier answers differently once others follow, so the last answer cannot be told "
            "from them. Use train_on='all_assistant'"
        )
    mask[positions] = False


def _marked_positions(
    template: ChatTemplate, beginning: Sequence[Mapping[str, Any]], tokens: list[int], mask: np.ndarray
) -> np.ndarray | None:
    """Positions in the whole conversation of the marked tokens of its beginning; None if the tokens differ."""
    alone, marked = template.marked(beginning)
    positions = np.flatnonzero(mask)[: int(marked.sum())]
    return positions if [tokens[i] for i in positions] == [alone[i] for i in np.flatnonzero(marked)] else None


def _weigh_turns(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    tokens: list[int],
    weights: np.ndarray,
    turn_weights: Mapping[int, float],
    train_on: TrainOn | int,
) -> None:
    """Multiply the token weights of assistant turns by the turns' weights, which are by message index."""
    if train_on == "all":
        raise MessageError("both the messages' weights and train_on='all' say which turns are learned; use one of them")
    for turn, weight in turn_weights.items():
        if weight != 1 and messages[turn]["role"] == "assistant":
            weights[_turn_positions(template, messages, tokens, turn)] *= weight
    if not weights.any():
        raise EmptyLossError("every answer to learn has the weight 0, so there is nothing to learn")


def _turn_positions(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], tokens: list[int], turn: int
) -> slice | np.ndarray:
    """Positions of the tokens of an assistant's turn."""
    if not template.marks_generation:
        return slice(*turn_span(template, messages, tokens, turn))
    mask = template.marked(messages)[1]
    through = _marked_positions(template, messages[: turn + 1], tokens, mask)
    before = _marked_positions(template, messages[:turn], tokens, mask) if turn else np.zeros(0, np.int64)
    if through is None or before is None:
        raise TemplateError(
            f"the chat template renders answers up to message {turn} differently once others follow, so the "
            "positions of its weight are unknown"
        )
    return through[len(before) :]


def _mask_problems(template: ChatTemplate, whole: list[int], mask: np.ndarray) -> list[str]:
    learned = decoded([token for token, m in zip(whole, mask, strict=True) if m], template.tokenizer)
    problems: list[str] = []
    for message in _PROBE:
        (content,) = text_parts(message["content"])
        if message["role"] == "assistant" and content not in learned:
            problems.append(f"the answer {content!r} is not wholly inside the mask")
        if message["role"] == "user" and content in learned:
            problems.append(f"the user's {content!r} is inside the mask")
    return problems


def _stop_problems(template: ChatTemplate, stop: int, learned: bool, turn: int) -> list[str]:
    """Problems with the last token of an assistant's turn."""
    if stop not in template.control_ids:
        return [f"no control token ends the answer in message {turn}, so a model would not learn to stop"]
    if not learned:
        return [
            f"the token that ends the answer in message {turn}, {template.describe(stop)}, is outside the mask, so a "
            "model would not learn to stop"
        ]
    return []
