"""The published mappers under their published module paths; all are ``DatasetMapper`` with a preset."""
