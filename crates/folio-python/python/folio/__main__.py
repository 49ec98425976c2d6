"""``python -m folio`` is the command line."""

from ._command import main

main()
