"""``python -m tools <command>``: find the command, check its flags, run it, and turn errors into messages."""

import difflib
import importlib
import inspect
import sys
from pathlib import Path

import fire
from fire import decorators

from tools.files import InputError

# Each command is the function of its own name in the module of its own name.
COMMANDS = ("demo", "phantom", "dataset", "augment", "compare", "report")


def check_flags(command: str, function, arguments: list[str]) -> None:
    """Raise InputError if an argument names a flag that the command does not have (fire would run first, then complain).

    Args:
        command: name of the command, for the message.
        function: the function behind it.
        arguments: the words after the command's name.
    """
    flags = list(inspect.signature(function).parameters)
    for argument in arguments:
        if not argument.startswith("-") or argument.lstrip("-")[:1].isdigit():
            continue
        if not argument.startswith("--"):
            raise InputError(f"{command} has no flag {argument}; flags begin with two dashes")
        flag = argument[2:].split("=")[0].replace("-", "_")
        if flag not in flags:
            close = difflib.get_close_matches(flag, flags, n=1)
            hint = f"; did you mean --{close[0]}?" if close else f"; it has {', '.join('--' + name for name in flags)}"
            raise InputError(f"{command} has no flag --{flag}{hint}")


def usage() -> str:
    """Return the list of commands, one line each."""
    lines = ["usage: python -m tools <command> [flags]   (--help after a command shows its flags)", ""]
    for command in COMMANDS:
        function = getattr(importlib.import_module(f"tools.{command}"), command)
        lines.append(f"  {command:9s} {inspect.getdoc(function).splitlines()[0]}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name.

    Returns:
        0 done, 1 failed, 2 wrong call.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    command, *rest = arguments
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        print(f"tools has no command {command}; {hint}", file=sys.stderr)
        return 2
    function = getattr(importlib.import_module(f"tools.{command}"), command)
    if {"-h", "--help"} & set(rest):
        print(f"python -m tools {command}{inspect.signature(function)}\n\n{inspect.getdoc(function)}")
        return 0
    paths = [name for name, p in inspect.signature(function).parameters.items() if p.annotation in (Path, Path | None)]
    try:
        check_flags(command, function, rest)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        typed = decorators.SetParseFns(**{name: str for name in paths})(function)  # a folder named 12 stays a path
        fire.Fire(typed, command=rest, name=f"tools {command}")
    except InputError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{command}: interrupted; start the same command again to go on", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
