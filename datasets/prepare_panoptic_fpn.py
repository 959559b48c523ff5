#!/usr/bin/env python
"""Make label maps of stuff and one class of things of COCO panoptic annotations; see --help."""

from mask2former.data.preparation.command import main

if __name__ == "__main__":
    raise SystemExit(main("coco_stuff"))
