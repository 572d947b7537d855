"""``python -m tools <command>``: find the command, check its flags, run it, and turn errors into messages."""

import ast
import difflib
import importlib
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path

import fire
from fire import decorators, parser

from tools.io.files import REFUSED, InputError, RunError

# Command to where its function is; the function has the command's name.
COMMANDS = {
    "demo": "demo",
    "phantom": "phantom.phantom",
    "draw_into_ct": "phantom.draw_into_ct",
    "dataset": "data.dataset",
    "maps": "maps.maps",
    "check_maps": "maps.check",
    "augment": "painting.augment",
    "replay": "painting.replay",
    "compare": "comparison.compare",
    "finish": "comparison.finish",
    "report": "report.report",
    "trust": "comparison.trust",
    "attack": "attack.attack",
    "faults": "attack.faults",
    "conditions": "evaluation.conditions",
    "curve": "evaluation.curve",
    "membership": "evaluation.membership",
    "quantify": "quantify.quantify",
    "segment": "segmenting.segment",
    "paint": "painting.paint",
    "bench_synthesis": "bench.synthesis_speed",
    "bench_segmentation": "bench.segmentation_speed",
    "bench_accuracy": "bench.segmentation_accuracy",
    "bench_emphysema": "evaluation.emphysema",
    "export_nnunet": "data.nnunet",
    "weights": "workflows.weights",
    "import_weights": "workflows.import_weights",
    "federated": "federated.federated",
    "triton": "serving.triton",
    "package": "serving.package",
}

# Earlier spelling, a command or a command and its flag, to the one of today.
RENAMED = {
    "masks": "maps, and masks --check is check_maps --maps FOLDER",
    "bench": "bench_synthesis, bench_segmentation, or bench_accuracy for bench segmentation --datalist",
    "augment --replay": "replay --manifest MANIFEST --case CASE",
    "dataset --format": "export_nnunet --datalist DATALIST after dataset",
    "dataset --datalist": "export_nnunet --datalist DATALIST",
}


def command_function(command: str) -> Callable:
    """Return the function behind a command; its module is imported only now, since importing all takes seconds."""
    return getattr(importlib.import_module(f"tools.{COMMANDS[command]}"), command)


def _flags(function: Callable) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function, eval_str=True).parameters)


def _types(parameter: inspect.Parameter) -> tuple:
    """Return the types that a parameter may have; ``Path | None`` has two, ``list[int]`` is one."""
    union = isinstance(parameter.annotation, types.UnionType)
    return typing.get_args(parameter.annotation) if union else (parameter.annotation,)


def _number(text: str, kind: type) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _positional(parameter: inspect.Parameter) -> bool:
    """Return whether a parameter's value follows the command itself: ``*ct`` takes several, ``ct, /`` takes one."""
    return parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY)


def check_flags(command: str, function: Callable, arguments: list[str]) -> list[str]:
    """Check the words of a command before anything runs (fire would run first and complain afterwards).

    Args:
        command: name of the command, for the message.
        function: the function behind it.
        arguments: the words after the command's name.

    Returns:
        The words as fire takes them: values without a flag first, then ``--flag=value``.

    Raises:
        InputError: if a word names a flag that the command does not have, or follows none; if a flag is given twice,
            has no value, or no number where a number is needed; if something needed is missing.
    """
    every = _flags(function)
    flags = {name: parameter for name, parameter in every.items() if not _positional(parameter)}
    free = [parameter for parameter in every.values() if _positional(parameter)]
    placed: list[str] = []
    given: dict[str, str] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word and not word.startswith("-"):
            if len(placed) == len(free) and not any(one.kind is one.VAR_POSITIONAL for one in free):
                raise InputError(
                    f"{command} cannot place {word!r}; each value follows its flag, as in --{next(iter(flags))} VALUE"
                )
            placed.append(word)
            continue
        if not word.startswith("--"):
            raise InputError(f"{command} has no flag {word}; flags begin with two dashes")
        flag, equals, value = word[2:].partition("=")
        flag = flag.replace("-", "_")
        if f"{command} --{flag}" in RENAMED:
            raise InputError(f"{command} --{flag} is now {RENAMED[f'{command} --{flag}']}")
        if flag not in flags:
            close = difflib.get_close_matches(flag, flags, n=1)
            hint = f"did you mean --{close[0]}?" if close else f"it has {', '.join('--' + name for name in flags)}"
            raise InputError(f"{command} has no flag --{flag}; {hint}")
        if flag in given:
            raise InputError(f"{command} got --{flag} twice")
        kinds = _types(flags[flag])
        if not equals:
            follows = words and not (words[0].startswith("-") and not _number(words[0], float))
            if bool in kinds and free:  # what follows a switch may be a value of its own
                follows = words and words[0] in ("True", "False")
            value = words.pop(0) if follows else "True" if bool in kinds else ""
        if not value:
            raise InputError(f"{command} got no value for --{flag}")
        if bool in kinds and value not in ("True", "False"):
            raise InputError(f"{command} --{flag} is True or False, not {value!r}")
        if int in kinds and not {float, str} & set(kinds) and not _number(value, int) and value != "None":
            raise InputError(f"{command} --{flag} needs a whole number, not {value!r}")
        if float in kinds and str not in kinds and not _number(value, float) and value != "None":
            raise InputError(f"{command} --{flag} needs a number, not {value!r}")
        given[flag] = value
    missing = [one.name.upper() for one in free[len(placed) :]]
    missing += [f"--{name}" for name, flag in flags.items() if flag.default is flag.empty and name not in given]
    if missing:
        raise InputError(f"{command} needs {', '.join(missing)}; python -m tools {command} --help explains")
    return placed + [f"--{flag}={value}" for flag, value in given.items()]


def usage() -> str:
    """Return the list of commands, one line each; read from the source, since importing all of them takes seconds."""
    lines = ["usage: python -m tools <command> [flags]   (--help after a command shows its flags)", ""]
    for command, module in COMMANDS.items():
        source = ast.parse(
            Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        )
        function = next(node for node in source.body if isinstance(node, ast.FunctionDef) and node.name == command)
        lines.append(f"  {command:18s} {ast.get_docstring(function).splitlines()[0]}")
    return "\n".join(lines)


def command_usage(command: str, function: Callable) -> str:
    """Return how a command is called, and its documentation."""
    words = [f"usage: python -m tools {command}"]
    for name, flag in _flags(function).items():
        if _positional(flag):
            words.append(name.upper() + (" ..." if flag.kind is flag.VAR_POSITIONAL else ""))
            continue
        value = name.upper() if flag.default in (flag.empty, None) else flag.default
        word = f"--{name}" if bool in _types(flag) else f"--{name} {value}"
        words.append(word if flag.default is flag.empty else f"[{word}]")
    return f"{' '.join(words)}\n\n{inspect.getdoc(function)}"


def _parser(kinds: set) -> Callable[[str], object]:
    """Return what makes a flag's value of its text."""
    if not kinds & {Path, str}:
        return parser.DefaultParseValue
    return _text_or_dict if dict in kinds else str


def _text_or_dict(text: str) -> object:
    return parser.DefaultParseValue(text) if text.startswith("{") else text


def main(arguments: list[str]) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name.

    Returns:
        0 done, 1 failed, 2 wrong call.
    """
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end a command
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    command, *rest = arguments
    command = command.replace("-", "_")
    if command in RENAMED:
        print(f"{command} is now {RENAMED[command]}", file=sys.stderr)
        return 2
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        print(f"tools has no command {command}; {hint}", file=sys.stderr)
        return 2
    # read when torch is loaded: idle OpenMP threads sleep instead of spinning, as fast alone, far faster beside others
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        function = command_function(command)
        if {"-h", "--help"} & set(rest):
            print(command_usage(command, function))
            return 0
        try:
            rest = check_flags(command, function, rest)
        except InputError as error:
            print(error, file=sys.stderr)
            return 2
        kinds = {name: set(_types(flag)) for name, flag in _flags(function).items()}
        # a folder named 12 stays a path, and a text with commas stays a text
        parsers = {name: _parser(kind) for name, kind in kinds.items()}
        decorators.SetParseFn(str)(function)  # of values without a flag
        fire.Fire(decorators.SetParseFns(**parsers)(function), command=rest, name=f"tools {command}")
    except (InputError, RunError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        place = f"{error.filename}: " if error.filename else "a result cannot be written: "
        told = "make room or name another place, then start the same command again"
        print(f"{command}: {place}{error.strerror}; {told}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{command}: interrupted; start the same command again to go on", file=sys.stderr)
        return 1
    return 0


def in_utf8(arguments: list[str]) -> None:
    """Start this program anew in UTF-8 mode where a locale such as C gives names of files another encoding."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        words = [sys.executable, "-X", "utf8", "-m", "tools", *arguments]
        os.execve(sys.executable, words, os.environ | {"PYTHONUTF8": "1"})


if __name__ == "__main__":
    in_utf8(sys.argv[1:])
    sys.exit(main(sys.argv[1:]))
