"""Descriptions of the built-in data sets, as data files.

datasets.json: format, classes, metadata (paths below the dataset root) and options of the reader, by name;
taxonomies.json: how metadata is built from a class table; provisions.json: where files come from; the others: class
tables, in the order of contiguous ids, with ``id`` as in the annotation files.
"""
