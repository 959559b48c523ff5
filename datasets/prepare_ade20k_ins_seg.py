#!/usr/bin/env python
"""Prepare ADE20K for instance segmentation; see --help."""

from mask2former.data.preparation.command import main

if __name__ == "__main__":
    raise SystemExit(main("ade20k_ins_seg"))
