#!/usr/bin/env python
"""Prepare COCO-Stuff 10k; see --help."""

from mask2former.data.preparation.command import main

if __name__ == "__main__":
    raise SystemExit(main("coco_stuff_10k"))
