"""The action "Checkpoint now", and the notice about shards that have lost data: shared by the pages of the app."""

from __future__ import annotations

import orjson
from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest

from vectors import services
from vectors.models import ShardHead
from vectors.selectors import shards_damaged


def checkpoint_ask(request: HttpRequest, shards: list[ShardHead]) -> list[ShardHead]:
    """Ask for a checkpoint of each shard, tell the person what came of it, and return the shards it was asked for."""
    asked, refused = [], []
    for shard in shards:
        if shard.damage is not None:
            messages.error(request, f"{shard} has lost data: its log is kept as it is, and no checkpoint is made.")
        elif shard.last_seq <= shard.manifest_seq:
            messages.info(
                request, f"{shard} has nothing to write: segments hold all of its {shard.last_seq} operations."
            )
        elif services.checkpoint_request(shard.uid, if_due=False):
            asked.append(shard)
        else:
            refused.append(shard)
    if asked:
        messages.success(
            request,
            f"The broker took the request: a Celery worker checkpoints {_names(asked)}. Reload to see segments.",
        )
    if refused:
        messages.error(
            request,
            f"The broker is down and did not take the request to checkpoint {_names(refused)}. Nothing is lost: a tail"
            f" is turned into segments without the broker once it is {settings.MLVDB_CHECKPOINT_INTERVAL_S:g} s old,"
            " and `manage.py checkpoint` does it now.",
        )
    return asked


def damage_tell(request: HttpRequest) -> None:
    """Say loudly which shards have lost data, and what."""
    for shard in shards_damaged():
        messages.error(
            request,
            f"DATA LOST: shard {shard} is damaged, answers from what is left, and refuses writes:"
            f" {orjson.dumps(shard.damage).decode()}",
        )


def _names(shards: list[ShardHead]) -> str:
    return ", ".join(map(str, shards))
