#!/usr/bin/env python
"""Make semantic label maps of COCO panoptic annotations; see --help."""

from mask2former.data.preparation.command import main

if __name__ == "__main__":
    raise SystemExit(main("coco_semantic"))
