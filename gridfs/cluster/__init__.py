"""The Ray cluster under a filesystem: its record, local nodes, and the one place where a class becomes an actor.

`record` (what is kept between commands) and `local` (nodes on this machine: start, stop) work without a connection; the
functions of `actors` need `connect` first, or a process that Ray has started.
"""

from gridfs.cluster.actors import (
    INODE_TABLE,
    NAMESPACE,
    SCHEDULER,
    ActorDied,
    ClusterNode,
    Unreachable,
    call,
    call_each,
    chunk_server_name,
    connect,
    create,
    destroy,
    disconnect,
    find,
    names,
    nodes,
    resolve,
    runner_name,
)
from gridfs.cluster.local import check_able, kill_node, node_command, start_nodes, stop_nodes, store_bytes
from gridfs.cluster.record import (
    MASTER,
    RAY_ENVIRONMENT,
    WORKER,
    ClusterRecord,
    LocalNode,
    NodePlan,
    log_dir,
    record_path,
    token_path,
)

__all__ = [
    "INODE_TABLE",
    "MASTER",
    "NAMESPACE",
    "RAY_ENVIRONMENT",
    "SCHEDULER",
    "WORKER",
    "ActorDied",
    "ClusterNode",
    "ClusterRecord",
    "LocalNode",
    "NodePlan",
    "Unreachable",
    "call",
    "call_each",
    "check_able",
    "chunk_server_name",
    "connect",
    "create",
    "destroy",
    "disconnect",
    "find",
    "kill_node",
    "log_dir",
    "names",
    "node_command",
    "nodes",
    "record_path",
    "resolve",
    "runner_name",
    "start_nodes",
    "stop_nodes",
    "store_bytes",
    "token_path",
]
