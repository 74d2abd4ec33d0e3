"""Where the parts of the cluster stand in its picture: boxes in rows, lanes for what moves between them. Pure.

The node that leads stands at the left, the shards below one another beside it, each with its other copies in the same
row. Slots on their way are arrows in lanes between the two. Lengths are units of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.admin.wording import shortened

WIDTH = 900
_MARGIN = 4
_NODE_WIDTH, _NODE_HEIGHT = 196, 98
_SHARD_LEFT, _SHARD_WIDTH, _SHARD_HEIGHT = 340, 296, 86
_COPY_LEFT, _COPY_WIDTH, _COPY_HEIGHT, _COPY_GAP = 664, 232, 40, 6
_ROW_GAP = 20
_LANES = 5
_LANE_WIDTH = 20
_TRUNK = 212
_NAME_ROOM = 30


@dataclass(frozen=True, slots=True)
class CopyBox:
    """A copy of a shard beside the one that takes its writes: `tone` is its colour, `words` what it is and lacks."""

    name: str
    tone: str
    words: str
    url: str = ""
    is_self: bool = False


@dataclass(frozen=True, slots=True)
class ShardBox:
    """A shard; `part` is its share of the slots, 0 to 1, None where nothing is divided."""

    key: str
    label: str
    tone: str
    condition: str
    place: str
    amounts: str
    part: float | None = None
    url: str = ""
    is_self: bool = False
    copies: Sequence[CopyBox] = field(default_factory=tuple)

    @property
    def name(self) -> str:
        """As much of the label as there is room for beside the condition."""
        return shortened(self.label, max(8, _NAME_ROOM - len(self.condition)))


@dataclass(frozen=True, slots=True)
class NodeBox:
    """The node that leads: its part in the cluster, and what is known of it, a line each."""

    title: str
    tone: str
    lines: Sequence[str]
    is_self: bool = False


@dataclass(frozen=True, slots=True)
class Arrow:
    """Slots on their way between two shards, named by their keys. `part` is how much is there, None: not known."""

    source: str
    target: str
    words: str
    part: float | None
    tone: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class Placed:
    """A box where it stands."""

    box: NodeBox | ShardBox | CopyBox
    x: int
    y: int
    width: int
    height: int

    @property
    def middle(self) -> int:
        """The middle of its height."""
        return self.y + self.height // 2


@dataclass(frozen=True, slots=True)
class PlacedShard:
    """A shard with its copies, and the line from the node that leads."""

    shard: Placed
    copies: Sequence[Placed]
    line: str
    links: Sequence[str]

    @property
    def bar(self) -> int:
        """The width of the bar of its share; 0 without one."""
        part = self.shard.box.part if isinstance(self.shard.box, ShardBox) else None
        return 0 if part is None else round(part * self.bar_room)

    @property
    def bar_room(self) -> int:
        """The width of the whole bar."""
        return _SHARD_WIDTH - 24


@dataclass(frozen=True, slots=True)
class PlacedArrow:
    """An arrow as a path, with the place of its words."""

    arrow: Arrow
    path: str
    x: int
    y: int

    @property
    def dashes(self) -> str:
        """How much of the path is drawn strong: of a path of length 100."""
        return f"{100 * (self.arrow.part or 0.0):.0f} 100"


@dataclass(frozen=True, slots=True)
class Drawing:
    """The whole picture."""

    node: Placed
    shards: Sequence[PlacedShard]
    arrows: Sequence[PlacedArrow]
    height: int
    left_out: int

    @property
    def width(self) -> int:
        """Its width."""
        return WIDTH


def drawing_of(node: NodeBox, shards: Sequence[ShardBox], arrows: Sequence[Arrow]) -> Drawing:
    """Return where everything stands. Arrows beyond the lanes that there are, or to no shard, are left out."""
    placed: dict[str, PlacedShard] = {}
    top = _MARGIN
    trunk = _MARGIN + _NODE_HEIGHT // 2
    for shard in shards:
        height = max(_SHARD_HEIGHT, len(shard.copies) * (_COPY_HEIGHT + _COPY_GAP) - _COPY_GAP)
        box = Placed(shard, _SHARD_LEFT, top, _SHARD_WIDTH, _SHARD_HEIGHT)
        copies = [_copy_at(number, copy, top) for number, copy in enumerate(shard.copies)]
        placed[shard.key] = PlacedShard(
            box,
            copies,
            line=f"M{_MARGIN + _NODE_WIDTH} {trunk}H{_TRUNK}V{box.middle}H{_SHARD_LEFT}",
            links=[_link(box, copy) for copy in copies],
        )
        top += height + _ROW_GAP
    known = [arrow for arrow in arrows if arrow.source in placed and arrow.target in placed]
    drawn = [_arrow(arrow, lane, placed) for lane, arrow in enumerate(known[:_LANES])]
    return Drawing(
        node=Placed(node, _MARGIN, _MARGIN, _NODE_WIDTH, _NODE_HEIGHT),
        shards=list(placed.values()),
        arrows=drawn,
        height=max(top - _ROW_GAP, _MARGIN + _NODE_HEIGHT) + _MARGIN,
        left_out=len(arrows) - len(drawn),
    )


def _copy_at(number: int, copy: CopyBox, top: int) -> Placed:
    return Placed(copy, _COPY_LEFT, top + number * (_COPY_HEIGHT + _COPY_GAP), _COPY_WIDTH, _COPY_HEIGHT)


def _link(shard: Placed, copy: Placed) -> str:
    """Return the line from a shard to a copy, through the gap before the copies."""
    bend = (_SHARD_LEFT + _SHARD_WIDTH + _COPY_LEFT) // 2
    return f"M{shard.x + shard.width} {shard.y + _COPY_HEIGHT // 2}H{bend}V{copy.middle}H{copy.x}"


def _arrow(arrow: Arrow, lane: int, placed: dict[str, PlacedShard]) -> PlacedArrow:
    x = _SHARD_LEFT - 28 - lane * _LANE_WIDTH
    # Each lane meets the boxes at a height of its own, away from the lines of the node that leads.
    step = 4 * lane
    source, target = placed[arrow.source].shard, placed[arrow.target].shard
    begin, end = source.y + _SHARD_HEIGHT - 8 - step, target.y + 8 + step
    path = f"M{_SHARD_LEFT} {begin}H{x}V{end}H{_SHARD_LEFT - 7}"
    return PlacedArrow(arrow, path, x, (begin + end) // 2 + 14 * (lane % 2))
