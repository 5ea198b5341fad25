"""`lossbook chat`: a conversation on the terminal, or line by line through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

from ...datums.errors import LossbookError, TruncationError
from ..terminal import console, plain_text
from .conversation import Conversation

HELP = """/reset         forget what was said
/system TEXT   begin anew under a system message; without a text under none
/regenerate    answer the last message again
/quit          leave; so does Ctrl-D
//...          say something that begins with a /
Ctrl-C stops an answer."""


def converse(conversation: Conversation) -> int:
    """Read lines and answer them until /quit or the end of the input; returns the exit code.

    In a pipe only the answers go to standard output, each followed by a line break; remarks go to standard error.
    """
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  (line editing and history in input())
        _remark("/help lists the commands; Ctrl-C stops an answer, /quit or Ctrl-D leaves")
    stopped_twice = False
    while True:
        try:
            line = input("> " if is_terminal else "")
        except EOFError:
            return 0
        except KeyboardInterrupt:
            if stopped_twice or not is_terminal:
                raise
            stopped_twice = True
            _remark("\nnothing to stop; Ctrl-C again, /quit or Ctrl-D leaves")
            continue
        stopped_twice = False
        if line.strip() == "/quit":
            return 0
        try:
            _obey(conversation, line)
        except TruncationError:
            _remark(_overflow(conversation))
        except LossbookError as error:
            _remark(str(error))


def _obey(conversation: Conversation, line: str) -> None:
    """Do what a line says: a command, or something to answer."""
    command, _, rest = line.strip().partition(" ")
    if not command:
        return
    if not command.startswith("/") or command.startswith("//"):
        _speak(lambda show: conversation.answer(line.removeprefix("/") if line.startswith("//") else line, show))
    elif command == "/reset":
        conversation.set_system(conversation.system)
        _remark("forgotten")
    elif command == "/system":
        conversation.set_system(rest.strip() or None)
        _remark("begun anew, " + ("under this system message" if rest.strip() else "without a system message"))
    elif command == "/regenerate":
        _speak(conversation.again)
    elif command == "/help":
        _remark(HELP)
    else:
        _remark(f"there is no command {command}; /help lists them, and //{command[1:]} says it")


def _speak(answer: Callable[[Callable[[str], None]], str]) -> None:
    """Print an answer as it comes, and a remark where it was cut."""

    def show(text: str) -> None:
        print(shown(text), end="", flush=True)

    reason = answer(show)
    print(flush=True)
    if reason == "length":
        _remark("(cut: --max-tokens, or the context, is full)")
    elif reason == "interrupted":
        _remark("(stopped)")


def shown(text: str) -> str:
    """A text as it is printed: a terminal gets control characters by their codes, so that no answer can command it."""
    return plain_text(text.replace("\t", "    ")) if sys.stdout.isatty() else text


def _overflow(conversation: Conversation) -> str:
    """What to say where the conversation fills the context."""
    limit = conversation.weights.max_length
    turns = len(conversation.messages) // 2
    kept = f"the {turns} earlier turns stay" if turns else "nothing was kept"
    return (
        f"too long: with this the conversation fills the model's context of {limit} tokens; {kept}. /reset forgets them"
    )


def _remark(text: str) -> None:
    console(sys.stderr).print(text, style="dim", soft_wrap=True)
