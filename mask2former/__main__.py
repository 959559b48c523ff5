"""``python -m mask2former``: the console command."""

import sys

from mask2former.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
