"""`transfer`: one entry, one module a command.

A command's module is imported only when it is the one that runs, so that `transfer --help` stays far from torch.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import signal
import sys

from transfer_api.errors import ArtifactError, ExitCode, StorageError, TransferError
from transfer_cli import stdout

INTERRUPTED = 130
COMMANDS: dict[str, str] = {
    "run": "run an experiment on this machine, or go on with it",
    "evaluate": "score a model, and another one beside it, without an experiment file",
    "plan": "show stages, keys, what is cached, tokens, FLOPs and expected time",
    "validate": "check experiment files; needs no model and no network",
    "status": "print the status of an experiment that ran on this machine",
    "report": "write the report of a finished experiment again",
    "seeds": "put runs of one file that differ in their seed into one table",
    "push": "hand the model of a finished run on, to a folder or a model hub",
    "ledger": "prove from its ledger that a training run read every row when it was due and none twice",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 refused before anything ran, else as in docs/concepts.md."""
    arguments = sys.argv[1:] if arguments is None else arguments
    chosen = next((word for word in arguments if word in COMMANDS), None)
    stdout.prepare()
    try:
        return stdout.delivered(_command(arguments, chosen))
    except SystemExit as ended:  # argparse: --help, --version, or an option that is wrong
        sys.exit(stdout.delivered(int(ended.code or 0)))
    except OSError as error:
        if stdout.is_lost():
            return stdout.give_up(error)
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"transfer {chosen}: a name is too long (got {error.filename!r}, allowed 255 bytes in each part)", file=sys.stderr)
        return ExitCode.REFUSED


def _command(arguments: list[str], chosen: str | None) -> int:
    parser = argparse.ArgumentParser(
        prog="transfer",
        description="Adapt a language model to another language: one experiment file in, a scored table out.",
        epilog="`transfer COMMAND --help` lists the options of a command.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        for name, text in COMMANDS.items():
            command = commands.add_parser(name, help=text, description=text)
            if name == chosen:
                module = importlib.import_module(f"transfer_cli.{name}")
                module.add_arguments(command)
                command.set_defaults(run=module.run)
        options = parser.parse_args(arguments)
        return int(options.run(options))
    except TransferError as error:
        print(f"transfer {chosen}: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, (ArtifactError, StorageError)) else ExitCode.REFUSED
    except KeyboardInterrupt:
        # `run` before its first look: nothing has begun, and the same command goes on as after any other Ctrl-C.
        print(f"transfer {chosen}: stopped", file=sys.stderr)
        return ExitCode.SAVED if chosen in ("run", "evaluate") else INTERRUPTED


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or SIGTERM.

    A type of its own: where a plain KeyboardInterrupt rises inside an `exec` of text (every dataclass is made by one), CPython
    remembers it even when it was caught, and `python -m` then dies by SIGINT whatever code `sys.exit` was given.
    """


def _stop(*_: object) -> None:
    raise Interrupted


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"transfer {version('transfer-operator')}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
