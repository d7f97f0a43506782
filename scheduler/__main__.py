"""scheduler.gridfs: puts the scheduler into the cluster of this machine's record, and ends once it works there."""

from __future__ import annotations

import sys

from gridfs import cluster, config, logs
from gridfs.cluster import ClusterRecord
from gridfs.errors import GridfsError
from scheduler.daemon import Daemon

_START_TIMEOUT_S = 30.0


def main() -> None:
    """Start the scheduler, or find that it runs. Exit status 1 and one sentence on failure."""
    logs.start()
    try:
        record = ClusterRecord.load()
        cluster.connect(record)
        head = cluster.nodes()[0]
        arguments = (record.memory_bytes, str(config.home()))
        daemon = cluster.create(Daemon, cluster.SCHEDULER, head.node_id, *arguments, max_restarts=-1)
        cluster.call(daemon, "statistics", timeout_s=_START_TIMEOUT_S)
    except GridfsError as error:
        sys.exit(f"gridfs: {error}")
    finally:
        cluster.disconnect()


if __name__ == "__main__":
    main()
