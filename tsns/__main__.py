"""The program's entry: `run`, `exec`, `shell` and `up` take the quick way, everything else goes through typer (ring 2).

Whatever goes wrong ends here, as one `error:` line, one `hint:` line and an exit status.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from tsns.cli import arguments, terminal

_COMPLETION_VARIABLE: Final = "_TSNS_COMPLETE"  # set by the shell's completion, which typer answers


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status, unless the process has become the command."""
    leading, rest = arguments.split_leading(sys.argv[1:] if argv is None else argv)
    command = rest[0] if rest else ""
    quick = command in arguments.NAMES and _COMPLETION_VARIABLE not in os.environ
    try:
        if quick:
            parsed = arguments.parse(command, [*leading, *rest[1:]])
            if not parsed.wants_help:
                from tsns.cli import enter

                return enter.main(command, parsed)
        from tsns.cli import app

        status = app.main(
            [command, *leading, *rest[1:]] if command and not command.startswith("-") else [*leading, *rest]
        )
        if sys.stdout is not None:  # closed by whoever started us
            sys.stdout.flush()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BrokenPipeError:
        terminal.silence_output()
        return 1
    except BaseException as error:  # noqa: BLE001 - the last frame: nothing may end in a traceback
        return terminal.report(error, _verbosity([*leading, *rest]), owns_status=command in arguments.BECOMING)
    return status


def _verbosity(argv: Sequence[str]) -> int:
    own = argv[: list(argv).index("--")] if "--" in argv else argv
    return sum(word.count("v") for word in own if word[:1] == "-" and not set(word[1:]) - set("qv")) + list(own).count(
        "--verbose"
    )


if __name__ == "__main__":
    sys.exit(main())
