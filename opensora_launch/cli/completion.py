"""Tab completion: a script for bash, and the words that it asks for. Reads the YAML files and the schema, not Hydra."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from opensora_launch.cli.help import topics
from opensora_launch.cli.verbs import VERBS
from opensora_launch.errors import UserError
from opensora_launch.request.catalogue import groups, keys
from opensora_launch.request.flags import SETTINGS_HELP

# bash ends a word at "=" and ":", and our words contain them: a reply is the part after the last one.
SCRIPT = r"""_opensora_launch() {
  local line=${COMP_LINE:0:COMP_POINT} word reply
  word=${line##* }
  mapfile -t reply < <("${COMP_WORDS[0]}" --shell-completion query "$line" 2>/dev/null)
  mapfile -t COMPREPLY < <(compgen -W "${reply[*]}" -- "$word")
  [ ${#COMPREPLY[@]} -eq 1 ] && case ${COMPREPLY[0]} in *= | *. | *@) compopt -o nospace ;; esac
  local cut=${word%"${word##*[=:]}"}
  COMPREPLY=("${COMPREPLY[@]#"$cut"}")
}
complete -o default -F _opensora_launch opensora-launch"""
SHELL_FLAGS = ("--help", "--version", "--shell-completion")


def complete(words: Sequence[str]) -> str:
    """What `--shell-completion bash` prints, and the answer to the script's `--shell-completion query LINE`."""
    if list(words) == ["bash"]:
        return SCRIPT
    if len(words) == 2 and words[0] == "query":
        return "\n".join(candidates(words[1]))
    raise UserError(
        "--shell-completion must be bash; zsh reads the same script after: autoload bashcompinit; bashcompinit"
    )


def candidates(line: str) -> list[str]:
    """Words that can complete the line; empty if the shell should offer files."""
    words = line.split()
    word = "" if not words or line[-1].isspace() else words.pop()
    if len(words) <= 1:
        return _starting([*VERBS, *SHELL_FLAGS], word)
    if words[1] not in VERBS:
        return []
    flags = VERBS[words[1]].flags
    before = next((flag for flag in flags if words[-1] in flag.names and flag.value), None)
    if before:
        return _starting(topics(words[1]) if before is SETTINGS_HELP else before.kinds, word)
    if word.startswith("-"):
        return _starting([name for flag in flags for name in flag.names if name.startswith("--")], word)
    return _starting(_overrides(word, words), word) if VERBS[words[1]].settings else []


def _overrides(word: str, words: Sequence[str]) -> list[str]:
    prefix = word[: len(word) - len(word.lstrip("+~"))]
    bare = word[len(prefix) :]
    extra = [Path(folder) for flag, folder in pairwise(words) if flag == "--config-dir"]
    known = groups([folder for folder in extra if folder.is_dir()])
    if "=" in bare:
        name = bare.partition("=")[0]
        choices = [choice.name for group in known if group.name == name for choice in group.choices]
        values = choices or [value for key in keys() if key.path == name for value in key.allowed]
        return [f"{prefix}{name}={value}" for value in values]
    depth = bare.count(".") + 1
    parts = [(key.path.split("."), key) for key in keys()]
    below = dict.fromkeys(".".join(p[:depth]) + ("=" if len(p) == depth else ".") for p, _ in parts)
    return [f"{prefix}{name}" for name in (*(f"{group.name}=" for group in known if depth == 1), *below)]


def _starting(names: Sequence[str], word: str) -> list[str]:
    return [name for name in names if name.startswith(word)]
