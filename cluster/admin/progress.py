"""How far a move is, for a progress bar and the numbers beside it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.template.defaultfilters import filesizeformat
from django.template.loader import render_to_string
from django.utils.safestring import SafeString

from cluster.admin.wording import badge, duration
from cluster.models import SLOT_KINDS, Move
from cluster.states import MovePhase


@dataclass(frozen=True, slots=True)
class Progress:
    """What a page says of a move. `fraction` is of rows where slots move, of bytes in a full sync, else of operations.

    The bytes of slots are an estimate until they have been copied, their rows are counted.
    """

    move: Move
    now: datetime

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return MovePhase(self.move.phase).is_over

    @property
    def phase(self) -> SafeString:
        """The phase as a coloured word."""
        return badge(MovePhase(self.move.phase))

    @property
    def fraction(self) -> float | None:
        """The part that is done, 0 to 1; None while it is not known of how much."""
        move = self.move
        if move.phase == MovePhase.DONE:
            return 1.0
        by_bytes = move.bytes_total and move.kind not in SLOT_KINDS
        done, total = (move.bytes_done, move.bytes_total) if by_bytes else (move.rows_done, move.rows_total)
        return min(1.0, done / total) if total else None

    @property
    def percent(self) -> str:
        """The part that is done, in per cent."""
        return "" if self.fraction is None else f"{100 * self.fraction:.0f} %"

    @property
    def amounts(self) -> str:
        """Rows and bytes done and to be done; operations where the log is caught up with."""
        move = self.move
        if move.kind == Move.Kind.CATCH_UP:
            return f"{move.rows_done:,} of {move.rows_total:,} operations"
        if not move.bytes_total:
            return "" if not move.rows_total else f"{move.rows_done:,} of {move.rows_total:,} rows"
        rows = f"{move.rows_done:,} of {move.rows_total:,} rows"
        return f"{rows}, {filesizeformat(move.bytes_done)} of {filesizeformat(move.bytes_total)}"

    @property
    def rate(self) -> str:
        """Bytes in a second of copying, so far; empty while nothing was copied."""
        if not self.move.bytes_done or self.move.work_s <= 0:
            return ""
        return f"{filesizeformat(self.move.bytes_done / self.move.work_s)}/s"

    @property
    def left(self) -> str:
        """The estimated time that is left; empty while there is no rate, and when it is over."""
        return "" if self.move.eta_s is None else f"about {duration(self.move.eta_s)} left"

    @property
    def took(self) -> str:
        """How long it has been going on, or took."""
        return duration(((self.move.ended_at or self.now) - self.move.started_at).total_seconds())


def progress_bar(move: Move, now: datetime) -> SafeString:
    """Return the bar with its numbers."""
    return render_to_string("admin/cluster/move/progress.html", {"progress": Progress(move, now)})
