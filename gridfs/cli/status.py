"""What `gridfs status` tells: one dictionary of plain values, and the same as a table for people."""

from __future__ import annotations

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
_LEVEL_STYLES = {"calm": "green", "warm": "yellow", "hot": "red", "lost": "bold red"}


def gather(record: ClusterRecord) -> dict[str, Any]:
    """Ask the filesystem how it is. Raises GridfsError with a sentence, within 15 seconds or so, if it does not say."""
    cluster.connect(record, timeout_s=8)
    try:
        table = cluster.find(cluster.INODE_TABLE, CALL_TIMEOUT_S)
        if table is None:
            raise GridfsError("the Ray cluster runs, but its filesystem is gone: run gridfs down, then gridfs up")
        try:
            statistics = cluster.call(table, "statistics", timeout_s=CALL_TIMEOUT_S)
        except cluster.Unreachable as error:
            raise GridfsError(f"the inode table does not answer ({error}): see the logs in {cluster.log_dir()}") from error
    finally:
        cluster.disconnect()
    return report(record.address, statistics, mounts.known())


def report(address: str, statistics: dict[str, Any], known: list[mounts.Mount]) -> dict[str, Any]:
    """The status as plain values, from the inode table's statistics and this machine's mounts."""
    placement = PlacementMap.unpack(statistics["placement"])
    alive = [node for node in placement.nodes if node.alive]
    listed = _mounts(statistics["sessions"], known)
    problems = list(_problems(placement, listed))
    return {
        "address": address,
        "nodes": [_node(node) for node in placement.nodes],
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
    table = Table("node", "level", *_right("capacity", "used", "free", "chunks"), title=f"gridfs on {status['address']}")
    for node in status["nodes"]:
        level = Text(node["level"], style=_LEVEL_STYLES.get(node["level"], ""))
        table.add_row(node["host"], level, *_sizes(node))
    table.add_section()
    table.add_row("all", "", *_sizes(status))
    console.print(table)
    for mount in status["mounts"]:
        console.print(f"mounted at {mount['mountpoint']} ({mount['state']})", soft_wrap=True, markup=False)
    if not status["mounts"]:
        console.print("not mounted: run gridfs mount /mnt/gridmem")
    for problem in status["problems"]:
        console.print(problem, style="bold red", soft_wrap=True, markup=False)
    if status["healthy"]:
        console.print("healthy", style="green")


def _right(*names: str) -> list[Column]:
    return [Column(name, justify="right") for name in names]


def _sizes(counts: dict[str, Any]) -> list[str]:
    sizes = (config.format_size(counts[f"{name}_bytes"]) for name in ("capacity", "used", "free"))
    return [*sizes, f"{counts['chunks']:,}"]


def _node(node: PlacementNode) -> dict[str, Any]:
    return {
        "host": node.host,
        "level": node.level,
        "weight": node.weight,
        "capacity_bytes": node.capacity_bytes,
        "used_bytes": node.used_bytes,
        "free_bytes": node.free_bytes,
        "chunks": node.chunks,
    }


def _mounts(sessions: list[dict[str, Any]], known: list[mounts.Mount]) -> list[dict[str, Any]]:
    """The mounts that the inode table knows, with what this machine knows of those that are its own."""
    here = {mount.mountpoint: mount for mount in known if mount.state != "gone"}
    listed = []
    for session in sessions:
        mount = here.pop(session["mountpoint"], None)
        listed.append({**session, "state": mount.state if mount else "alive"})
    listed.extend({"mountpoint": mount.mountpoint, "state": mount.state} for mount in here.values())
    return listed


def _problems(placement: PlacementMap, listed: list[dict[str, Any]]) -> list[str]:
    problems = [
        f"{node.host} is lost, and with it the chunks it held ({node.chunks:,})" for node in placement.nodes if not node.alive
    ]
    if not any(node.alive for node in placement.nodes):
        problems.append("no node takes chunks: writes fail until a worker is back")
    for mount in listed:
        if mount["state"] == "dead":
            point = mount["mountpoint"]
            problems.append(f"the mount at {point} is dead: run gridfs umount {point}, then gridfs mount {point}")
    return problems
