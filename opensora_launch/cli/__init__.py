"""`opensora-launch VERB ...`: verbs, flags and Hydra, once. The only room that talks to the terminal.

What a verb needs is imported when it is asked for: `--help` answers at once, and a login node needs no torch.
"""

import difflib
import errno
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from opensora_launch import __version__, exit_codes
from opensora_launch.errors import UserError

if TYPE_CHECKING:
    from opensora_launch.request.flags import Parsed

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)  # no traceback would help to mend it
VERBS = ("generate", "plan", "bench", "verify", "report", "compare", "top", "status", "cancel", "doctor", "estimate")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; the exit code. 0 done, 1 a failure, 2 the user's mistake, 75 stored and stopped, 130 Ctrl-C."""
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
    except BrokenPipeError:  # whoever reads, head for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.FAILURE
    except OSError as error:
        if error.errno not in DISK:
            raise
        place = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror}{place}", file=sys.stderr)
        return exit_codes.FAILURE


def _run(words: list[str]) -> int:
    verb, rest = (words[0], words[1:]) if words else ("--help", [])
    if verb in ("--help", "-h", "help"):
        from opensora_launch.cli.help import main_help

        print(main_help())
        return 0
    if verb == "--version":
        print(f"opensora-launch {__version__}")
        return 0
    if verb in ("--shell-completion", "-sc"):
        from opensora_launch.cli.completion import complete

        print(complete(rest))
        return 0
    if verb in VERBS:
        return _run_verb(verb, rest)
    near = difflib.get_close_matches(verb, VERBS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the verbs are {', '.join(VERBS)}"
    raise UserError(f"{verb!r} is not a verb of opensora-launch; {hint}")


def _run_verb(verb: str, words: list[str]) -> int:
    from opensora_launch.request.flags import FLAGS, parse

    parsed = parse(verb, FLAGS[verb], words)
    if parsed.has("--help"):
        from opensora_launch.cli.help import verb_help

        print(verb_help(verb))
        return 0
    if verb == "generate":
        from opensora_launch.cli.generate import generate

        return generate(parsed)
    if verb == "plan":
        from opensora_launch.cli.plan import plan

        return plan(parsed)
    if verb == "verify":
        from opensora_launch.cli.verify import verify

        return verify(parsed)
    if verb in ("status", "cancel"):
        from opensora_launch.cli.status import cancel, status

        return (status if verb == "status" else cancel)(parsed)
    if verb == "doctor":
        from opensora_launch.cli.doctor import doctor

        return doctor(parsed)
    if verb == "estimate":
        from opensora_launch.cli.estimate import estimate

        return estimate(parsed)
    if verb == "bench":
        from opensora_launch.cli.bench import bench

        return bench(parsed)
    return _run_reader(verb, parsed)


def _run_reader(verb: str, parsed: "Parsed") -> int:
    """The verbs that only read what runs left."""
    if verb == "compare":
        from opensora_launch.cli.compare import compare_runs

        return compare_runs(parsed)
    if verb == "top":
        from opensora_launch.cli.top import top

        return top(parsed)
    from opensora_launch.cli.report import report

    return report(parsed)
