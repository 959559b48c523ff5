#!/usr/bin/env python
"""Draw the shapes data set to disk; see --help."""

from mask2former.data.shapes.command import main

if __name__ == "__main__":
    raise SystemExit(main())
