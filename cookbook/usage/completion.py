"""Completion for shells: a script that knows every command, its flags, and the values between which a flag chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ..settings.written.needs import choices
from .flags import Flag

SHELLS = ("bash", "zsh")
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
_SCRIPT = """# Completion of lossbook, written by `lossbook --completion {asked}`.
{begin}_lossbook() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" name="" word i words=""
    for ((i = 1; i < COMP_CWORD; i++)); do
        word="${{COMP_WORDS[i]}}"
        case "$name $word " in
{names}
                name="${{name:+$name }}$word" ;;
            *) break ;;
        esac
    done
    case "$name $prev" in
{values}
        *) case "$name" in
{flags}
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _lossbook lossbook
"""


def script(shell: str, commands: Mapping[tuple[str, ...], Callable[[], list[Flag]]]) -> str:
    """The script for a shell of SHELLS. commands: what gives the flags of each command."""
    flags = {name: load() for name, load in commands.items()}
    begun = sorted({name[:length] for name in flags for length in range(1, len(name) + 1)})
    names = "|".join(f'"{" ".join(one[:-1])} {one[-1]} "' for one in begun)
    return _SCRIPT.format(
        asked=shell,
        begin=_ZSH if shell == "zsh" else "",
        names=f"            {names})",
        values="\n".join(_values(flags)),
        flags="\n".join(_flags(flags, begun)),
    )


def _values(commands: Mapping[tuple[str, ...], list[Flag]]) -> Iterator[str]:
    for name, flags in commands.items():
        for flag in flags:
            if chosen := " ".join(map(str, choices(flag.annotation))):
                yield f'        "{" ".join(name)} {flag.long}") words="{chosen}" ;;'
    yield '        *" --config") ;;'


def _flags(commands: Mapping[tuple[str, ...], list[Flag]], begun: list[tuple[str, ...]]) -> Iterator[str]:
    """The next words of each beginning of a command, and the flags of each whole one."""
    for name in [(), *begun]:
        below = {other[len(name)] for other in begun if len(other) > len(name) and other[: len(name)] == name}
        own = [one for flag in commands.get(name, []) for one in flag.names]
        own += ["--config"] if name[:1] == ("train",) and name in commands else []
        own += ["--help"] if name else ["--help", "--version", "--completion"]
        yield f'            "{" ".join(name)}") words="{" ".join([*sorted(below), *own])}" ;;'
