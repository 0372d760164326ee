"""The Celery app, and the publisher that sends attempts to their session's own queue.

The settings are measured ones: Celery delivers, Postgres decides. A message may be lost,
doubled or late without harm, so nothing here tries to prevent that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from farm.broker.progress import client_url

_log = logging.getLogger(__name__)

RENDER = "farm.render"
"""The one Celery task: ``render([(batch_id, ord, attempt), ...])``."""

_TOGETHER = 32
"""Attempts in a message: sending and fetching one costs more than all else the broker does for a
job."""

_KEYS = ("", "_kombu.binding.", "_kombu.binding_permanent.")
"""What stands before a queue's name in the keys of the broker: its messages, its bindings."""

_PATIENCE = 1.0
"""Seconds in which a broker answers the dispatcher; a message it has not taken is sent again."""

_SETTINGS: dict[str, Any] = {
    "broker_transport_options": {
        # A message that was fetched is gone. Giving work back is the reaper's task, not Celery's:
        # nothing comes twice, nothing of dead sessions is left in the broker, and a broker that
        # dies takes no worker with it (kombu 5.7 cannot acknowledge what came before).
        "ack_emulation": False,
        # Priorities are decided in Postgres; one list a queue is cheaper to poll than four.
        "priority_steps": [0],
        "socket_timeout": 10,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 15,
    },
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    # With early acknowledgement a freed thread waits for the next poll of the event loop.
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "task_acks_on_failure": True,
    "task_acks_on_timeout": True,
    "worker_prefetch_multiplier": 1,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    # Soft shutdown does not work with threads; the session drains by itself.
    "worker_soft_shutdown_timeout": 0,
    "worker_enable_soft_shutdown_on_idle": False,
    "worker_hijack_root_logger": False,
    "worker_send_task_events": False,
    "task_ignore_result": True,
    "result_backend": None,
    "task_track_started": False,
    "task_serializer": "json",
    "accept_content": ["json"],
    # Nobody consumes it: a message without a queue is seen there, and not run.
    "task_default_queue": "unrouted",
}


def celery_app(broker_url: str) -> Celery:
    """The Celery app on this broker, without tasks."""
    app = Celery("farm", broker=broker_url)
    app.conf.update(_SETTINGS)
    return app


def queue_name(session_id: str) -> str:
    """The queue that one session alone consumes."""
    return f"w.{session_id}"


class Publisher:
    """Sends attempts to sessions; what cannot be sent now is sent again later by its caller."""

    def __init__(self, broker_url: str) -> None:
        self._app = celery_app(broker_url)
        # The dispatcher has more to do than to wait for a broker that is frozen or gone: kombu
        # tries to connect for seven seconds, and a leader that is silent for five is followed.
        self._app.conf.broker_transport_options = {
            **self._app.conf.broker_transport_options,
            "socket_timeout": _PATIENCE,
            "socket_connect_timeout": _PATIENCE,
            "max_retries": 0,
        }
        self._producer = self._app.amqp.Producer(self._app.connection_for_write())
        self._redis = redis.Redis.from_url(
            client_url(broker_url), socket_timeout=_PATIENCE, socket_connect_timeout=_PATIENCE
        )

    def publish(self, leases: Iterable[tuple[int, int, int, str]]) -> bool:
        """Send (batch, ord, attempt) to their sessions; False when the broker is out of reach."""
        by_session: dict[str, list[tuple[int, int, int]]] = {}
        for batch_id, ord, attempt, session_id in leases:
            by_session.setdefault(session_id, []).append((batch_id, ord, attempt))
        try:
            with self._producer.batch(max_size=500):
                for session_id, attempts in by_session.items():
                    for first in range(0, len(attempts), _TOGETHER):
                        self._send(session_id, attempts[first : first + _TOGETHER])
        except (KombuError, RedisError, OSError) as error:
            _log.warning("the broker is out of reach, messages will be sent again: %s", error)
            return False
        return True

    def _send(self, session_id: str, attempts: Sequence[tuple[int, int, int]]) -> None:
        self._app.send_task(
            RENDER,
            args=(attempts,),
            queue=queue_name(session_id),
            producer=self._producer,
            retry=False,
        )

    def waiting(self, session_id: str) -> int | None:
        """Messages in the session's queue, each of one attempt or more; None when the broker is
        out of reach."""
        try:
            return int(self._redis.llen(queue_name(session_id)))
        except (RedisError, OSError):
            return None

    def forget(self, session_ids: Sequence[str]) -> None:
        """Delete the queues of sessions that have ended."""
        names = [queue_name(session_id) for session_id in session_ids]
        keys = [f"{prefix}{name}" for name in names for prefix in _KEYS]
        try:
            self._redis.delete(*keys)
        except (RedisError, OSError):
            _log.debug("queues of ended sessions are left in the broker: %s", names)

    def known(self) -> set[str]:
        """The sessions of which something is in the broker. Safe in another thread."""
        found = set()
        try:
            for prefix in _KEYS:
                for key in self._redis.scan_iter(match=f"{prefix}w.*", count=500):
                    found.add(key.decode().removeprefix(prefix).removeprefix("w."))
        except (RedisError, OSError):
            _log.debug("the broker does not say which queues it has")
        return found

    def close(self) -> None:
        self._producer.release()
        self._app.close()
        self._redis.close()
