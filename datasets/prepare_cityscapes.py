#!/usr/bin/env python
"""Prepare Cityscapes for semantic and panoptic segmentation; see --help."""

from mask2former.data.preparation.command import main

if __name__ == "__main__":
    raise SystemExit(main("cityscapes"))
