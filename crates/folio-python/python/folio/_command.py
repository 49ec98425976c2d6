"""The command ``folio``."""

import signal
import sys

from ._folio import command


def main() -> None:
    """Runs the command line with the arguments of the process, and exits with its code."""
    # Python's handler would only note Ctrl-C and wait for the interpreter, which is not running. The commands that save
    # when they are interrupted install their own.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(command(["folio", *sys.argv[1:]]))
