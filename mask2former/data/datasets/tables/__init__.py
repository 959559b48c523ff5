"""What is known of the built-in data sets, as data files.

datasets.json: format, classes, metadata (paths below the dataset root) and what else the reader needs, by name;
taxonomies.json: how metadata is made of a class table; provisions.json: where the files of a path come from; the
others: class tables, whose order is that of the contiguous ids and whose ``id`` is that of the annotation files.
"""
