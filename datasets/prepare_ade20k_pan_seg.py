#!/usr/bin/env python
"""Prepare ADE20K for panoptic segmentation; see --help."""

from mask2former.data.preparation.command import main

if __name__ == "__main__":
    raise SystemExit(main("ade20k_pan_seg"))
