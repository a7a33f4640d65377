"""The command line without typer: the quick way of `run`, `exec`, `shell` and `up` (ring 2, standard library only).

    tsns run  [FLAGS] -- COMMAND      tsns exec [FLAGS] NAME -- COMMAND      tsns up [FLAGS] NAME      tsns shell NAME

Without `--` the first word after the names begins the command. Switches take three spellings: `--x`, `--no-x`, `--x=false`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Final

from tsns.error import UsageError
from tsns.settings import SETTINGS, Flag, read_bool

QUIET: Final = Flag("quiet", "Say nothing but errors", short="-q")
VERBOSE: Final = Flag("verbose", "Say more; twice: show where an error came from", short="-v", counts=True)
NAME: Final = Flag("name", "Use the lasting node of this name; it is made if needed, and stays", "NAME")
KEEP_CAPS: Final = Flag("keep-caps", "As root, keep all capabilities instead of Docker's default set")

# Of a node that runs: who it is, and how long somebody waits, are not among it.
CHANGEABLE: Final = tuple(
    flag for flag in SETTINGS if flag.field not in {"login_server", "auth_key", "ephemeral", "timeout_s"}
)

RUN_FLAGS: Final = (NAME, *SETTINGS, KEEP_CAPS, QUIET, VERBOSE)
EXEC_FLAGS: Final = (KEEP_CAPS, QUIET, VERBOSE)
UP_FLAGS: Final = (*SETTINGS, QUIET, VERBOSE)
SET_FLAGS: Final = (*CHANGEABLE, QUIET, VERBOSE)
ATTACH_FLAGS: Final = (*SETTINGS, QUIET, VERBOSE)
_OPPOSITES: Final = {f"--{flag.opposite}": f"{flag.name}" for flag in SETTINGS if flag.opposite}
NAMES: Final = {"run": 0, "exec": 1, "shell": 1, "up": 1}  # how many words stand before the command
BECOMING: Final = frozenset({"run", "exec", "shell"})  # these become a command, and have its exit status
TAKING_COMMAND: Final = frozenset({"run", "exec"})
FLAGS: Final = {"run": RUN_FLAGS, "exec": EXEC_FLAGS, "shell": EXEC_FLAGS, "up": UP_FLAGS}
HELP_OPTIONS: Final = frozenset({"--help", "-h"})


class Parsed(SimpleNamespace):
    """What a command line says: flags by name, words, and the command after them. (A dataclass would cost `run` a third of its imports.)"""

    given: dict[str, str | bool | int]
    words: list[str]
    command: list[str]
    wants_help: bool

    def __init__(
        self,
        given: dict[str, str | bool | int] | None = None,
        words: list[str] | None = None,
        command: list[str] | None = None,
    ) -> None:
        super().__init__(given=given or {}, words=words or [], command=command or [], wants_help=False)


def split_leading(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Cut off the `-q` and `-v` that stand before the command's name: they mean the same after it."""
    count = 0
    while count < len(argv) and _is_common(argv[count]):
        count += 1
    return list(argv[:count]), list(argv[count:])


def _is_common(word: str) -> bool:
    return word in {"--quiet", "--verbose"} or (word[:1] == "-" and len(word) > 1 and not set(word[1:]) - set("qv"))


def _unknown(option: str, known: Collection[str], command: str) -> UsageError:
    import difflib

    near = difflib.get_close_matches(option, known, n=1)
    hint = (
        f"did you mean {near[0]}? `tsns {command} --help` lists them all"
        if near
        else f"`tsns {command} --help` lists the options"
    )
    return UsageError(f"no such option: {option}", hint)


def parse(command: str, argv: Sequence[str]) -> Parsed:
    """Read what stands after `tsns run`, `tsns exec` or `tsns up`; UsageError for what is wrong."""
    flags, names = FLAGS[command], NAMES[command]
    options = {option: flag for flag in flags for option in flag.options}
    negations = {f"--no-{flag.name}": flag for flag in flags if flag.is_switch}
    parsed = Parsed()
    dashes = list(argv).index("--") if "--" in argv else None
    rest = list(argv if dashes is None else argv[:dashes])
    if dashes is not None:
        parsed.command = list(argv[dashes + 1 :])
    while rest:
        word = rest.pop(0)
        if word in HELP_OPTIONS:
            parsed.wants_help = True
            return parsed
        if not word.startswith("-") or word == "-":
            if len(parsed.words) < names:
                parsed.words.append(word)
            elif command not in TAKING_COMMAND:
                raise UsageError(f"{word!r} is one word too many", f"write `tsns {command} NAME`")
            elif dashes is None:
                parsed.command = [word, *rest]
                break
            else:
                raise UsageError(f"{word!r} stands before --", _misplaced(command, word))
            continue
        word = _spelled(word)
        option, equals, text = word.partition("=")
        if not word.startswith("--"):
            _cluster(parsed, word, options, command)
        elif option in negations and not equals:
            _switch(parsed, negations[option], False)
        elif option not in options:
            raise _unknown(option, [*options, *negations], command)
        else:
            _long(parsed, options[option], option, text if equals else None, rest)
    if parsed.command and command not in TAKING_COMMAND:
        raise UsageError(f"tsns {command} takes no command", "write `tsns run --name NAME -- COMMAND`")
    return parsed


def _spelled(word: str) -> str:
    """A switch's opposite in the words of the switch."""
    option, equals, text = word.partition("=")
    if option not in _OPPOSITES:
        return word
    name = _OPPOSITES[option]
    return f"--no-{name}" if not equals or _bool(option, text) else f"--{name}"


def _misplaced(command: str, word: str) -> str:
    if command == "run":
        return f"the command stands after --; a node's name goes with --name, as in `tsns run --name {word} -- ...`"
    return "first the node's name, then --, then the command"


def _cluster(parsed: Parsed, word: str, options: dict[str, Flag], command: str) -> None:
    """Short options, which may stand together: `-qv`. None of them takes a value."""
    for letter in word[1:]:
        flag = options.get(f"-{letter}")
        if flag is None:
            raise _unknown(f"-{letter}", options, command)
        _switch_on(parsed, flag)


def _switch(parsed: Parsed, flag: Flag, on: bool) -> None:
    """A setting that is switched off may differ from its default; another flag that is off might as well not be there."""
    if on or flag.field:
        parsed.given[flag.name] = on
    else:
        parsed.given.pop(flag.name, None)


def _switch_on(parsed: Parsed, flag: Flag) -> None:
    parsed.given[flag.name] = int(parsed.given.get(flag.name, 0)) + 1 if flag.counts else True


def _long(parsed: Parsed, flag: Flag, option: str, text: str | None, rest: list[str]) -> None:
    if flag.takes_value:
        if text is None:
            if not rest:
                raise UsageError(f"option {option} needs a value", f"write {option} {flag.metavar}")
            text = rest.pop(0)
        parsed.given[flag.name] = text
    elif text is None:
        _switch_on(parsed, flag)
    elif flag.counts:
        raise UsageError(f"option {option} takes no value", f"write {option} alone")
    else:
        _switch(parsed, flag, _bool(option, text))


def _bool(option: str, text: str) -> bool:
    try:
        return read_bool(text)
    except ValueError:
        raise UsageError(
            f"{option}: {text!r} is neither true nor false", f"write {option}, --no-{option[2:]} or {option}=false"
        ) from None


def normalise(argv: Sequence[str], switches: Collection[str], negatable: Collection[str]) -> list[str]:
    """Give typer the spellings it knows: `--x=false` becomes `--no-x`, or nothing at all where the switch has no such twin.

    `switches` are the long options of the command's switches, `negatable` those of them with a `--no-` twin. What stands after `--` is
    left alone.
    """
    result: list[str] = []
    for place, typed in enumerate(argv):
        word = _spelled(typed)
        if word == "--":
            return [*result, *argv[place:]]
        option, equals, text = word.partition("=")
        if option.startswith("--no-") and not equals and f"--{option[5:]}" in switches:
            option, value = f"--{option[5:]}", False
        elif option in switches and equals:
            value = _bool(option, text)
        else:
            result.append(word)
            continue
        if value:
            result.append(option)
        elif option in negatable:
            result.append(f"--no-{option[2:]}")
        else:
            result = [earlier for earlier in result if earlier != option]
    return result


def canonical(command: str, argv: Sequence[str]) -> list[str]:
    """The same command line of `run` or `exec` with its command after `--`, where typer does not look for options."""
    parsed = parse(command, argv)  # also refuses `--` as the value of an option, which typer would take
    if parsed.wants_help:
        return ["--help"]
    if "--" in argv or not parsed.command:
        return list(argv)
    cut = len(argv) - len(parsed.command)
    return [*argv[:cut], "--", *argv[cut:]]
