"""The command `gridfs`.

Nothing else of this package may be imported before it is known that this is our `gridfs`: PyMongo ships a package of
the same name, and the two overwrite each other's files when both are installed.
"""

import sys
from types import ModuleType

CLASH = (
    "the Python package gridfs that was found is PyMongo's, not this one: install ray-gridfs into a virtual "
    "environment without pymongo"
)


def main() -> None:
    """Run the command and end the process with its exit status."""
    import gridfs
    import gridfs.errors

    if clashes(gridfs, gridfs.errors):
        print(f"gridfs: {CLASH}", file=sys.stderr)
        sys.exit(1)
    from gridfs.cli.commands import run

    run()


def clashes(package: ModuleType, errors: ModuleType) -> bool:
    """True if either of these modules is PyMongo's."""
    return hasattr(package, "GridFS") or not hasattr(errors, "GridfsError")
