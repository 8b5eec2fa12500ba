"""`opensora-launch VERB ...`: parse the command line, call the verb, print. The only room that talks to the terminal.

A verb's module is imported when the verb is called, so `--help` answers at once and a login node needs no torch.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from opensora_launch import __version__, exit_codes
from opensora_launch.cli.terminal import print_errors, print_lines
from opensora_launch.cli.verbs import VERBS
from opensora_launch.errors import UserError, did_you_mean, disk_problem
from opensora_launch.machine.output import secure_output
from opensora_launch.machine.processes import end_without_teardown
from opensora_launch.request.flags import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code, one of exit_codes. Without `argv`, it is the command of this process."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        secure_output(strict=not (words and words[0] in VERBS and VERBS[words[0]].works))
    try:
        code = _run(words)
        sys.stdout.flush()
        if argv is None and "torch" in sys.modules:  # a rank was in this process
            end_without_teardown(code)
        return code
    except UserError as error:
        print_errors([f"error: {error}"])
        return exit_codes.USER_ERROR
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has stopped reading
        return exit_codes.FAILURE
    except OSError as error:
        problem = disk_problem(error)
        if problem is None:
            raise
        print_errors([f"error: {problem}"])
        return exit_codes.FAILURE


def _run(words: list[str]) -> int:
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in ("--help", "-h", "help"):
        from opensora_launch.cli.help import main_help

        print_lines(main_help())
        return exit_codes.DONE
    if name == "--version":
        print(f"opensora-launch {__version__}")
        return exit_codes.DONE
    if name in ("--shell-completion", "-sc"):
        from opensora_launch.cli.completion import complete

        print(complete(rest))
        return exit_codes.DONE
    if name in VERBS:
        _check_folder()
        parsed = parse(name, VERBS[name].flags, rest)
        if parsed.has("--help"):
            from opensora_launch.cli.help import verb_help

            print_lines(verb_help(name, parsed.one("--help")))
            return exit_codes.DONE
        module = importlib.import_module(f"opensora_launch.cli.{VERBS[name].module or name}")
        code: int = getattr(module, f"{name}_verb")(parsed)
        return code
    hint = did_you_mean(name, [*VERBS, "--help", "--version"]) or f"the verbs are {', '.join(VERBS)}"
    raise UserError(f"{name!r} is not a verb of opensora-launch; {hint}")


def _check_folder() -> None:
    """Raise UserError if the working folder is gone, or if a run's files cannot hold its name."""
    try:
        folder = os.getcwd()
        folder.encode()
    except FileNotFoundError:
        raise UserError("the working folder has been deleted: change to a folder that exists") from None
    except UnicodeEncodeError:
        raise UserError(f"the working folder {folder!r} is not UTF-8: rename it, or change to another one") from None
