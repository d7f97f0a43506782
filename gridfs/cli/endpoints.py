"""Where the filesystem of this home is reached."""

from __future__ import annotations

from gridfs.types import Endpoints


def resolve() -> Endpoints:
    """What streams need, asked through Ray, which this process leaves again. Raises GridfsError with a sentence."""
    from gridfs import cluster

    cluster.connect(cluster.ClusterRecord.load())
    try:
        return cluster.resolve()
    finally:
        cluster.disconnect()
