"""``python -m lipsync`` is the command line."""

from lipsync.cli import main

main()
