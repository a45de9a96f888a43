"""``python -m chatserver`` is the command ``chatserver``."""

import os
import sys

# `-m` puts the working directory before everything else: an `openai.py` that lies there would be run.
if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109 - nothing more is imported before
    del sys.path[0]

from chatserver.cli import main

main()
