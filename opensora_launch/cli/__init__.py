"""`opensora-launch VERB ...`: parse the command line, call the verb, print. The only room that talks to the terminal.

A verb's module is imported when the verb is called, so `--help` answers at once and a login node needs no torch.
"""

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from opensora_launch import __version__, exit_codes
from opensora_launch.cli.verbs import VERBS
from opensora_launch.errors import UserError
from opensora_launch.request.flags import Parsed, parse

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)  # a traceback would not help


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code, one of exit_codes."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.USER_ERROR
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has stopped reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.FAILURE
    except OSError as error:
        if error.errno not in DISK:
            raise
        place = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror}{place}", file=sys.stderr)
        return exit_codes.FAILURE


def _run(words: list[str]) -> int:
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in ("--help", "-h", "help"):
        from opensora_launch.cli.help import main_help

        print(main_help())
        return exit_codes.DONE
    if name == "--version":
        print(f"opensora-launch {__version__}")
        return exit_codes.DONE
    if name in ("--shell-completion", "-sc"):
        from opensora_launch.cli.completion import complete

        print(complete(rest))
        return exit_codes.DONE
    if name in VERBS:
        return _run_verb(name, parse(name, VERBS[name].flags, rest))
    near = difflib.get_close_matches(name, VERBS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the verbs are {', '.join(VERBS)}"
    raise UserError(f"{name!r} is not a verb of opensora-launch; {hint}")


def _run_verb(name: str, parsed: Parsed) -> int:
    if parsed.has("--help"):
        from opensora_launch.cli.help import verb_help

        print(verb_help(name))
        return exit_codes.DONE
    module = importlib.import_module(f"opensora_launch.cli.{name}")
    code: int = getattr(module, f"{name}_verb")(parsed)
    return code
