"""Checking a filesystem: the inode table against itself and against what the chunk servers hold; and mending what is safe.

It stands beside the vfs, above `gridfs.meta` and `gridfs.chunk`, which never know each other. `compare` is pure, `look` gathers
what it compares, `repair` mends, `report` puts it into words, and `run` is all of it.
"""
