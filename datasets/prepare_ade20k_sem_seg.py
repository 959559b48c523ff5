#!/usr/bin/env python
"""Prepare ADE20K for semantic segmentation; see --help."""

from mask2former.data.preparation.command import main

if __name__ == "__main__":
    raise SystemExit(main("ade20k_sem_seg"))
