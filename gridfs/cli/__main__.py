"""`python -m gridfs.cli` is `gridfs`."""

from gridfs.cli import main

if __name__ == "__main__":
    main()
