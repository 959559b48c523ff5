"""One reader, one validator and one writer for every form of file."""
