"""``python -m chatserver`` is the command ``chatserver``."""

from chatserver.cli import main

main()
