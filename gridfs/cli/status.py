"""What `gridfs status` tells: one dictionary of plain values, and the same as a table for people."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from gridfs import cluster, config
from gridfs.cli import mounts
from gridfs.cluster import ClusterRecord
from gridfs.errors import GridfsError
from gridfs.types import PlacementMap, PlacementNode

CALL_TIMEOUT_S = 5.0
SETTLE_S = 5.0
"""How long an inode table or a scheduler that has died may take to be back before `gridfs status` calls it a problem."""
_POLL_S = 0.2
_LOST = "lost"
_LEVEL_STYLES = {"calm": "green", "warm": "yellow", "hot": "red", _LOST: "bold red"}
_ABSENT = "-"


def gather(record: ClusterRecord) -> dict[str, Any]:
    """Ask the filesystem how it is. Raises GridfsError with a sentence, within 20 seconds or so, if it does not say."""
    cluster.connect(record, timeout_s=8)
    try:
        statistics, trouble = _ask_until_settled()
        masters = [node.host for node in cluster.nodes(CALL_TIMEOUT_S) if node.role == cluster.MASTER]
    finally:
        cluster.disconnect()
    ended = {node.host for node in record.nodes if not node.alive}
    return report(record.address, statistics, masters, mounts.known(), ended, trouble)


def report(
    address: str,
    statistics: dict[str, Any],
    masters: Sequence[str],
    known: Sequence[mounts.Mount],
    ended: Collection[str],
    trouble: Sequence[str],
) -> dict[str, Any]:
    """The status as plain values.

    Made from the inode table's statistics, the hosts that hold no chunks, this machine's mounts, the local hosts whose
    processes have ended, and sentences on what else is wrong.
    """
    placement = PlacementMap.unpack(statistics["placement"])
    alive = [node for node in placement.nodes if node.alive]
    listed = _mounts(statistics["sessions"], known)
    problems = [*_node_problems(placement, ended), *trouble, *_mount_problems(listed)]
    return {
        "address": address,
        "nodes": [*(_worker(node) for node in placement.nodes), *(_master(host) for host in masters)],
        "capacity_bytes": sum(node.capacity_bytes for node in alive),
        "used_bytes": sum(node.used_bytes for node in alive),
        "free_bytes": sum(node.free_bytes for node in alive),
        "chunks": sum(node.chunks for node in alive),
        "inodes": statistics["inodes"],
        "mounts": listed,
        "healthy": not problems,
        "problems": problems,
        "uptime_s": round(statistics["uptime_s"], 1),
    }


def show(status: dict[str, Any], console: Console) -> None:
    """Print the status for people: a table of nodes, the mounts, and one line on health."""
    table = Table(
        "node", "role", "level", *_right("capacity", "used", "free", "chunks"), title=f"gridfs on {status['address']}"
    )
    for node in status["nodes"]:
        level = Text(node["level"] or _ABSENT, style=_LEVEL_STYLES.get(node["level"], ""))
        table.add_row(node["host"], node["role"], level, *_sizes(node))
    table.add_section()
    table.add_row("all", "", "", *_sizes(status))
    console.print(table)
    for mount in status["mounts"]:
        console.print(f"mounted at {mount['mountpoint']} ({mount['state']})", soft_wrap=True, markup=False)
    if not status["mounts"]:
        console.print("not mounted: run gridfs mount /mnt/gridmem")
    for problem in status["problems"]:
        console.print(problem, style="bold red", soft_wrap=True, markup=False, highlight=False)
    if status["healthy"]:
        console.print("healthy", style="green")


def _ask_until_settled() -> tuple[dict[str, Any], list[str]]:
    """What the inode table says, and what is wrong with the scheduler.

    Ray restarts either when it has died, and the scheduler then needs a second to publish what it sees. So both are asked
    again until all is well, for SETTLE_S at most.
    """
    deadline = time.monotonic() + SETTLE_S
    while True:
        late = time.monotonic() > deadline
        try:
            statistics, trouble = _ask_inode_table(), _ask_scheduler()
        except cluster.Unreachable as error:
            if late:
                raise GridfsError(f"the inode table does not answer ({error}): see the logs in {cluster.log_dir()}") from error
        else:
            if late or (not trouble and statistics["placement"]["epoch"] > 0):
                return statistics, trouble
        time.sleep(_POLL_S)


def _ask_inode_table() -> dict[str, Any]:
    table = cluster.find(cluster.INODE_TABLE, CALL_TIMEOUT_S)
    if table is None:
        raise GridfsError("the Ray cluster runs, but its filesystem is gone: run gridfs down, then gridfs up")
    statistics: dict[str, Any] = cluster.call(table, "statistics", timeout_s=CALL_TIMEOUT_S)
    return statistics


def _ask_scheduler() -> list[str]:
    scheduler = cluster.find(cluster.SCHEDULER, CALL_TIMEOUT_S)
    if scheduler is None:
        return ["there is no scheduler, so nobody notices what happens to the nodes: run gridfs down, then gridfs up"]
    try:
        failure = cluster.call(scheduler, "statistics", timeout_s=CALL_TIMEOUT_S)["failure"]
    except cluster.Unreachable as error:
        return [f"the scheduler does not answer ({error}), so the figures of the nodes are old"]
    return [f"the scheduler could not do its work just now ({failure}), so the figures of the nodes are old"] if failure else []


def _right(*names: str) -> list[Column]:
    return [Column(name, justify="right") for name in names]


def _sizes(counts: dict[str, Any]) -> list[str]:
    """The cells of a row; what is lost, or never there, has no sizes."""
    absent = counts.get("level", "") in (None, _LOST)
    sizes = (_ABSENT if absent else config.format_size(counts[f"{name}_bytes"]) for name in ("capacity", "used", "free"))
    return [*sizes, f"{counts['chunks']:,}"]


def _worker(node: PlacementNode) -> dict[str, Any]:
    return {
        "host": node.host,
        "role": cluster.WORKER,
        "level": node.level,
        "weight": node.weight,
        "capacity_bytes": node.capacity_bytes,
        "used_bytes": node.used_bytes,
        "free_bytes": node.free_bytes,
        "chunks": node.chunks,
    }


def _master(host: str) -> dict[str, Any]:
    """A node that contributes nothing: there is no chunk server on it that could hold a chunk."""
    sizes = dict.fromkeys(("capacity_bytes", "used_bytes", "free_bytes", "chunks"), 0)
    return {"host": host, "role": cluster.MASTER, "level": None, "weight": 0.0, **sizes}


def _mounts(sessions: Sequence[dict[str, Any]], known: Sequence[mounts.Mount]) -> list[dict[str, Any]]:
    """The mounts that the inode table knows, with what this machine knows of those that are its own."""
    here = {mount.mountpoint: mount for mount in known if mount.state != "gone"}
    listed = []
    for session in sessions:
        mount = here.pop(session["mountpoint"], None)
        listed.append({**session, "state": mount.state if mount else "alive"})
    listed.extend({"mountpoint": mount.mountpoint, "state": mount.state} for mount in here.values())
    return listed


def _node_problems(placement: PlacementMap, ended: Collection[str]) -> Iterator[str]:
    alive = {node.host for node in placement.nodes if node.alive}
    lost = dict.fromkeys(ended, 0)
    for node in placement.nodes:
        if not node.alive:
            lost[node.host] = lost.get(node.host, 0) + node.chunks
    for host, chunks in sorted(lost.items()):
        count = f"{chunks:,} chunk" if chunks == 1 else f"{chunks:,} chunks"
        if host in ended:
            yield f"{host} has died with {count}: files with chunks that were only there fail; gridfs down and up begin anew"
        elif host not in alive:
            yield f"{host} does not answer: files with chunks there fail ({count} when it last did), and it gets no new ones"
        elif chunks:
            yield f"the chunk server on {host} died with {count}: remove the files that were only there, or copy them in again"
    if not alive:
        yield "no node takes chunks: writes fail until a worker is back"


def _mount_problems(listed: Sequence[dict[str, Any]]) -> Iterator[str]:
    for mount in listed:
        if mount["state"] == "dead":
            point = mount["mountpoint"]
            yield f"the mount at {point} is dead: run gridfs umount {point}, then gridfs mount {point}"
