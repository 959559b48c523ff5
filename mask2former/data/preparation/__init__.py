"""Prepare downloaded data sets: from the official files to those that the registered names read."""
