"""What one wait had read of Kafka's topics, as the inbox keeps it, in the order in which it was read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from deferrable_ops.inbox.events.events import StoredEvent


def was_read(kept: StoredEvent, offsets: Mapping[str, int] | None) -> bool:
    """Return whether a wait had read a record when these were the offsets at which it was to go on.

    :param offsets: by partition; None: all that is there.
    """
    if offsets is None:
        return True
    partition, offset = _place(kept)
    return offset < offsets.get(str(partition), 0)


def in_partition_order(kept: Sequence[StoredEvent]) -> Iterator[tuple[int, StoredEvent]]:
    """Return events with numbers to take them by, those of one partition in the order of their offsets.

    Several waits read a partition, each from an offset of its own, so its records may have been stored in another
    order: they change places among themselves.

    :param kept: in the order of their commits.
    """
    places: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, one in enumerate(kept):
        if "partition" in one.attributes["metadata"]:
            places[one.source, _place(one)[0]].append(index)
    ordered = list(kept)
    for indexes in places.values():
        for index, one in zip(indexes, sorted((kept[index] for index in indexes), key=_place), strict=True):
            ordered[index] = one
    return zip((one.number for one in kept), ordered, strict=True)


def _place(kept: StoredEvent) -> tuple[int, int]:
    metadata = kept.attributes["metadata"]
    return metadata["partition"], metadata["offset"]
