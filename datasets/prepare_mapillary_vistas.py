#!/usr/bin/env python
"""Prepare Mapillary Vistas; see --help."""

from mask2former.data.preparation.command import main

if __name__ == "__main__":
    raise SystemExit(main("mapillary_vistas"))
