"""A conversation with a model: what was said, and the answers to it, token by token."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from ...datums.chat.template import decoded
from ...datums.errors import ConfigError
from ...datums.types import SamplingParams
from .prompts import prompt_tokens
from .weights import Weights

if TYPE_CHECKING:
    from ...trainer.sampling.decode import Progress

#: What decoders write for bytes that are no whole character yet.
_INCOMPLETE = "\ufffd"


class _Stopped(Exception):
    """The user stopped an answer."""


class Conversation:
    """Turns of a user and a model. Without a chat template it is one text, which the model continues.

    An answer that was stopped or cut is kept as far as it went. The seed of answer i is `params.seed` + i, so that a
    conversation with a seed can be repeated, and a regenerated answer is another one.
    """

    def __init__(self, weights: Weights, params: SamplingParams, system: str | None = None) -> None:
        self.weights, self.params, self.system = weights, params, None
        self.messages: list[dict[str, Any]] = []
        self._answers = 0
        self.set_system(system)

    def set_system(self, text: str | None) -> None:
        """Begin anew under a system message. Raises ConfigError where there is no chat template to put it into."""
        if text is not None and not self.weights.is_chat:
            raise ConfigError("a system message needs the chat template: these prompts are plain text")
        self.system, self.messages = text, []

    def answer(self, text: str, show: Callable[[str], None]) -> str:
        """Say something, and return why the answer ended: "stop", "length" or "interrupted". `show` gets it piece by piece.

        Raises TruncationError where the conversation fills the context; then it is as it was before.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            said, reason = self._sampled(show)
        except BaseException:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": said})
        return reason

    def again(self, show: Callable[[str], None]) -> str:
        """Answer the last thing that was said anew, as `answer` does. Raises ConfigError where nothing was said."""
        if not self.messages:
            raise ConfigError("nothing was said yet")
        before = self.messages
        self.messages = before[:-2]
        try:
            return self.answer(before[-2]["content"], show)
        except BaseException:
            self.messages = before
            raise

    def tokens(self) -> list[int]:
        """The tokens that the model reads next."""
        tokenizer = self.weights.tokenizer
        if self.weights.is_chat:
            return prompt_tokens(self.messages, tokenizer, is_chat=True, system=self.system)
        return prompt_tokens("".join(one["content"] for one in self.messages), tokenizer, is_chat=False)

    def _sampled(self, show: Callable[[str], None]) -> tuple[str, str]:
        tokens, seed = self.tokens(), self.params.seed
        params = replace(self.params, seed=None if seed is None else seed + self._answers)
        shown = _Shown(self.weights.tokenizer, show)
        with _stoppable() as is_stopped:

            def on_progress(progress: Progress) -> None:
                if is_stopped():
                    raise _Stopped
                shown.add(progress.newest)

            call = self.weights.sampler.sample(tokens, 1, params, on_progress=on_progress)
            error = call.exception()
        if error is None:
            (sequence,) = call.result().sequences
            self._answers += 1
            return shown.finish(sequence.tokens), sequence.stop_reason
        if not _is_stop(error):
            raise error
        self._answers += 1
        return shown.finish(shown.tokens), "interrupted"


class _Shown:
    """Shows the text of tokens as they come; what is no whole character yet waits for the next token."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        self.tokenizer, self.show = tokenizer, show
        self.tokens: list[int] = []
        self.text = ""

    def add(self, newest: tuple[int, ...]) -> None:
        self.tokens += newest
        text = decoded(self.tokens, self.tokenizer, skip_special_tokens=True)
        if text.startswith(self.text) and not text.endswith(_INCOMPLETE):
            self.show(text[len(self.text) :])
            self.text = text

    def finish(self, tokens: list[int]) -> str:
        """Show the rest of the text of all tokens, and return the whole."""
        text = decoded(tokens, self.tokenizer, skip_special_tokens=True)
        self.show(text[len(self.text) :] if text.startswith(self.text) else f"\n{text}")
        return text


def _is_stop(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is the user's stop."""
    while error is not None:
        if isinstance(error, _Stopped):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C asks the answer to stop. Outside the main thread Python allows no handlers: then it does not."""
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
