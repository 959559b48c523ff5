"""One reader, one checker and one writer for every form of file."""
