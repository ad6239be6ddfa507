"""The rows of the table, by the names they are asked for with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from bench.context import Context
from bench.report import Result
from bench.rows import (
    checkpoints,
    cold,
    creating,
    files,
    hydration,
    lost,
    many,
    memory,
    proxy,
    rooms,
    running,
    saving,
    uploading,
    urls,
    waking,
    work,
    writing,
)

ROWS: dict[str, Callable[[Context], Awaitable[Result]]] = {
    "tti": creating.tti,
    "tti-node": creating.tti_node,
    "burst": creating.burst,
    "burst-node": creating.burst_node,
    "exec": running.exec_row,
    "control": running.control,
    "close": running.close,
    "stream": running.stream,
    "files": files.files,
    "proxy": proxy.proxy,
    "warm": waking.warm,
    "wake-exec": waking.cold_exec,
    "wake-url": waking.cold_url,
    "url": urls.url,
    "url-large": urls.url_large,
    "blank": memory.blank,
    "agent": memory.agent,
    "idle": many.idle,
    "states": many.states,
    "growth": many.growth,
    "hydrate": hydration.hydrate_small,
    "hydrate-8gb": hydration.hydrate_large,
    "checkpoint": checkpoints.checkpoint,
    "restore": checkpoints.restore,
    "stalls": writing.stalls,
    "random-writes": writing.random_writes,
    "space-per-write": rooms.space_per_write,
    "work": work.work,
    "upload": uploading.upload,
    "sqlite": saving.sqlite,
    "requests": saving.requests,
    "attach": lost.attach,
    "attach-8gb": lost.attach_large,
    "recover": lost.recover,
    "space": lost.space,
    "restart": lost.restart,
    "cold": cold.cold,
}
