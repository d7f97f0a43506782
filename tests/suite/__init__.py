"""The behaviour of a filesystem, one rule a test: of the mounted gridfs, or of any directory in GRIDFS_SUITE_DIR."""
