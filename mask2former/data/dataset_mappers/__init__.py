"""The published mappers under their published module paths; ``DatasetMapper`` is what they all are."""
