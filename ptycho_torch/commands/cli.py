"""The command ``ptycho-torch``, also as ``python -m ptycho_torch``; other programs are built of the same parts."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from ptycho_torch.contracts.nicknames import nearest
from ptycho_torch.errors import IncompleteFileError, PtychoError, one_line
from ptycho_torch.files.system_errors import explain


class Command(NamedTuple):
    """One command.

    Attributes:
        module: with ``add_arguments(parser)`` and ``run(options) -> int``; it is imported when the command is used, and
            not before.
        what: what the command does.
        example: a command line that works.
    """

    module: str
    what: str
    example: str


class Program(NamedTuple):
    """A program of several commands.

    Attributes:
        name: as one types it.
        what: what the program is for, a sentence.
        example: a command line that works.
        commands: every command by name, in the order in which one uses them.
    """

    name: str
    what: str
    example: str
    commands: Mapping[str, Command]


COMMANDS = {
    "simulate": Command(
        "ptycho_torch.commands.simulate",
        "simulate the scan of a known object",
        "ptycho-torch simulate -o scans/star.npz --object siemens_star --plot star.png",
    ),
    "check-data": Command(
        "ptycho_torch.commands.check_data",
        "check scan files against the data contract",
        "ptycho-torch check-data scans/ --plot pictures",
    ),
    "convert-scan": Command(
        "ptycho_torch.commands.convert_scan",
        "repair a scan, or import a CXI/HDF5 file",
        "ptycho-torch convert-scan counts.npz -o scans/star.npz --from-intensity",
    ),
    "train": Command(
        "ptycho_torch.commands.train",
        "train the network on scans, and reconstruct them",
        "ptycho-torch train scans/ -o run --config run.yaml --max-epochs 60 --no-tracking",
    ),
    "convert-checkpoint": Command(
        "ptycho_torch.commands.convert_checkpoint",
        "make a checkpoint of today of one that is a pickle of PyTorch",
        "ptycho-torch convert-checkpoint old_run/checkpoints/last.ckpt -o run/checkpoints/last.ckpt --trust",
    ),
    "infer": Command(
        "ptycho_torch.commands.infer",
        "reconstruct scans with a trained network",
        "ptycho-torch infer run/checkpoints/last.ckpt scans/ -o reconstructions",
    ),
    "evaluate": Command(
        "ptycho_torch.commands.evaluate",
        "compare reconstructions with the true object",
        "ptycho-torch evaluate reconstructions/star.npz --truth scans/star.npz --plot comparison.png",
    ),
    "plot": Command(
        "ptycho_torch.commands.plot",
        "draw reconstructions, scans and training histories",
        "ptycho-torch plot reconstructions/star.npz run/history.json -o pictures",
    ),
}
"""Every command, in the order in which one uses them."""

PTYCHO_TORCH = Program(
    "ptycho-torch",
    "Ptychographic reconstruction with a physics-informed network.",
    "ptycho-torch check-data scan.npz",
    COMMANDS,
)

USAGE_ERROR, FAILURE, INTERRUPTED = 2, 1, 130
"""Exit codes beside 0: the command line was wrong, the command failed, or the user interrupted it."""

_MESSAGE_CHARACTERS = 4000


class _Version(argparse.Action):
    """Print the version of the package; it is looked up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import importlib.metadata

        print(f"{parser.prog} {importlib.metadata.version('ptycho-torch')}")  # noqa: T201 - the answer
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Takes underscores in flags for dashes, and says in one line what is wrong with a command line."""

    def __init__(self, program: Program, command: Command | None = None, **names: Any) -> None:
        # Examples stay in one line, so that they can be copied.
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(**names | {"allow_abbrev": False, "formatter_class": formatter, "add_help": False})
        self._program = program
        self._command = command
        if command is None:
            self.add_argument("-h", "--help", action="help", help="show this help and exit")
            self.add_argument("--version", action=_Version, help="show the version and exit")

    def complete(self) -> None:
        """Import the module of the command and add its arguments, once."""
        if self._command is None:
            return
        command, self._command = self._command, None
        self.epilog = f"example: {command.example}"
        importlib.import_module(command.module).add_arguments(self)
        # What every command has stands last, so that what this one is about is read first.
        general = self.add_argument_group("of every command")
        general.add_argument("-v", "--verbose", action="store_true", help="say more on the way")
        general.add_argument("--debug", action="store_true", help="show the traceback of an error")
        general.add_argument("-h", "--help", action="help", help="show this help and exit")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Only here is it known which command is wanted. Importing all of them would make --help wait for PyTorch.
        self.complete()
        return super().parse_known_args(_with_dashes(sys.argv[1:] if args is None else args), namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            command = parser_of(options.command, self._program)
            command.error(f"unrecognized arguments: {' '.join(unknown)}{_nearest(unknown, command)}")
        return options

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"error: {one_line(message, _MESSAGE_CHARACTERS)} (see {self.prog} --help)\n")


def parser(program: Program = PTYCHO_TORCH) -> argparse.ArgumentParser:
    """Return the parser of the whole command line; it imports the module of a command when it meets the command."""
    top = _Parser(
        program,
        prog=program.name,
        description=program.what,
        epilog=f"example: {program.example}\n\n{program.name} COMMAND --help has one for each command.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in program.commands.items():
        commands.add_parser(
            name,
            program=program,
            command=command,
            help=command.what,
            description=f"{command.what[0].upper()}{command.what[1:]}.",
        )
    return top


def parser_of(name: str, program: Program = PTYCHO_TORCH) -> argparse.ArgumentParser:
    """Return the parser of one command."""
    alone = _Parser(program, program.commands[name], prog=f"{program.name} {name}")
    alone.complete()
    return alone


def main(arguments: Sequence[str] | None = None, program: Program = PTYCHO_TORCH) -> int:
    """Run one command; return its exit code, and say in one line on standard error why it failed."""
    top = parser(program)
    typed = sys.argv[1:] if arguments is None else arguments
    if not typed:
        top.print_help(sys.stderr)
        return USAGE_ERROR
    options = top.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO if options.verbose else logging.WARNING)
    try:
        code = int(importlib.import_module(program.commands[options.command].module).run(options))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        if options.debug:
            raise
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does. Python would complain again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (PtychoError, OSError) as err:
        if options.debug:
            raise
        said = str(err) if isinstance(err, PtychoError) else explain(err)
        if isinstance(err, IncompleteFileError):
            said += f" The whole command: {shlex.join([program.name, *typed])} {err.options}"
        return _fail(f"error: {one_line(said, _MESSAGE_CHARACTERS)}")
    except Exception as err:
        if options.debug:
            raise
        what = f"{type(err).__name__}: {one_line(str(err), _MESSAGE_CHARACTERS)}".removesuffix(": ")
        return _fail(f"error: unexpected {what} (--debug shows the traceback)")


def _fail(line: str, code: int = FAILURE) -> int:
    print(line, file=sys.stderr)  # noqa: T201 - the command's last word
    return code


def _nearest(unknown: Sequence[str], command: argparse.ArgumentParser) -> str:
    """Return the flag that was probably meant."""
    known = {flag.removeprefix("--") for flag in re.findall(r"--[\w-]+", command.format_help())}
    for argument in unknown:
        if near := nearest(argument.partition("=")[0].lstrip("-"), known):
            return f"; did you mean --{near}?"
    return ""


def _with_dashes(arguments: Sequence[str]) -> list[str]:
    """Write --max_epochs as --max-epochs, up to a lone --.

    >>> _with_dashes(["--max_epochs=3", "a_b", "--run-name", "x_y"])
    ['--max-epochs=3', 'a_b', '--run-name', 'x_y']
    """
    arguments = list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for number, argument in enumerate(arguments[:end]):
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            arguments[number] = flag.replace("_", "-") + equals + value
    return arguments
