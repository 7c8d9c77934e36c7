"""Where each allocation lives in shared memory, and which of them share a place. Only the parent decides that."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Sequence

from pypto_actors.backends.memory import Interconnect
from pypto_actors.backends.slabs import Block, Heap, Slab
from pypto_actors.values import DeviceTensor

HOST_HEAP = -1  # the heap of host arrays and of their copies; the others have the ranks of their devices
SHARED = 1 << 20  # bytes; from here on, a copy of a whole allocation may be put off until one of both is written


class SharedInterconnect(Interconnect):
    """Device memory that other processes can map, and staging for host arrays. `elsewhere(work)` has work done in some thread;
    `dropped(slabs)` is called with slabs that have gone after their device, when nobody shared them any more.

    Allocations may share a block, which none of them may write then: each is given one of its own first (copy on write, as the pages of
    a forked process). `written`: those that a kernel or a callback has written, or may have.
    """

    def __init__(self, elsewhere: Callable[[Callable[[], None]], None], dropped: Callable[[list[int]], None]) -> None:
        super().__init__()
        self.slabs: dict[int, Slab] = {}
        self._elsewhere = elsewhere
        self._dropped = dropped
        self._heaps: dict[int, Heap] = {}
        self._blocks: dict[int, Block] = {}
        self._users: dict[Block, int] = {}  # of a block that has several
        self._reserved: list[Block] = []  # to be filled, before an allocation has them
        self._retired: list[Slab] = []  # of devices that have died, but others share some of it
        self.written: set[int] = set()
        self._last = 0
        self._by_address: list[tuple[int, int]] = []  # (address, slab), sorted

    def heap(self, rank: int) -> Heap:
        heap = self._heaps.get(rank)
        if heap is None:
            heap = self._heaps[rank] = Heap(self._new_slab, self._elsewhere, rank != HOST_HEAP)
        return heap

    def _new_slab(self, size: int) -> Slab:
        self._last += 1
        slab = self.slabs[self._last] = Slab(self._last, size)
        insort(self._by_address, (slab.address, slab.number))
        return slab

    def commit(self, allocation: int, nbytes: int, rank: int) -> None:
        if allocation not in self.buffers:
            self.check_there(rank)
            block = self.heap(rank).take(nbytes)
            self._blocks[allocation] = block
            self.buffers[allocation] = block.array()
            self._ranks[allocation] = rank

    def release(self, allocation: int) -> None:
        rank = self._ranks.get(allocation)
        super().release(allocation)
        self.written.discard(allocation)
        block = self._blocks.pop(allocation, None)
        if block is not None and rank is not None:
            self.leave(block)

    def lose(self, rank: int) -> None:
        """A device has died: its memory goes as a whole, but for what it shares with others, and its places are never used again."""
        self.gone.add(rank)
        heap = self._heaps.pop(rank, None)
        blocks = []
        for allocation in [allocation for allocation, where in self._ranks.items() if where == rank]:
            Interconnect.release(self, allocation)
            self.written.discard(allocation)
            block = self._blocks.pop(allocation)
            if block in self._users or block.heap is not heap:
                self.leave(block)
            else:
                blocks.append(block)
        if heap is not None:
            kept = [slab for slab in heap.slabs if self._in_use(slab)]
            self._drop([slab for slab in heap.slabs if slab not in kept])
            self._retired += kept
            for block in blocks:
                if block.slab in kept:
                    heap.give(block)

    # ------------------------------------------------------------------------------------------ copy on write

    def can_share(self, target: DeviceTensor, source: DeviceTensor) -> bool:
        """May a copy be put off? Of whole allocations, large, and of something that no kernel has written yet: it may well never be."""
        mine, other = self._blocks.get(target.allocation), self._blocks.get(source.allocation)
        if mine is None or other is None or source.allocation in self.written:
            return False
        return target.nbytes >= SHARED and mine.nbytes == other.nbytes == target.nbytes

    def share(self, target: int, source: int) -> bool:
        """Give the block of one allocation, which nobody uses now, for that of another; `False`: they share it already."""
        block, former = self._blocks[source], self._blocks[target]
        if block is former:
            return False
        self._users[block] = self._users.get(block, 1) + 1
        self._blocks[target] = block
        self.buffers[target] = block.array()
        self.written.discard(target)
        self.leave(former)
        return True

    def write(self, allocations: Iterable[int]) -> None:
        """Kernels or callbacks are about to write them."""
        self.written.update(allocation for allocation in allocations if allocation in self._blocks)

    def shares(self, allocation: int) -> bool:
        """Must it be moved before it is written?"""
        return bool(self._users) and self._blocks.get(allocation) in self._users

    def begin_move(self, allocations: Sequence[int]) -> list[tuple[Block, Block]]:
        """A zeroed block of its own for each, beside the one that it has and keeps until `end_move`.

        Raises:
            MemoryError: nothing has changed.
        """
        pairs: list[tuple[Block, Block]] = []
        try:
            for allocation in allocations:
                former = self._blocks[allocation]
                pairs.append((former, self.heap(self._ranks[allocation]).take(former.nbytes)))
        except BaseException:
            for _, own in pairs:
                own.heap.give(own)
            raise
        self._reserved += [own for _, own in pairs]
        for former, _ in pairs:
            self._users[former] = self._users.get(former, 1) + 1
        return pairs

    def end_move(self, allocations: Sequence[int], pairs: Sequence[tuple[Block, Block]]) -> list[Block]:
        """They have been filled. Gives the blocks that are to be left when nobody reads there any more."""
        blocks: list[Block] = []
        for allocation, (former, own) in zip(allocations, pairs, strict=True):
            self._reserved.remove(own)
            if self._blocks.get(allocation) is former:
                self._blocks[allocation] = own
                self.buffers[allocation] = own.array()
                blocks += (former, former)  # its own use of it, and that of the move
            else:  # it has gone with its device
                self.leave(own)
                blocks.append(former)
        return blocks

    def leave(self, block: Block) -> None:
        """One user less; the last one gives it back."""
        users = self._users.get(block, 1)
        if users > 2:
            self._users[block] = users - 1
        elif users == 2:
            del self._users[block]
        elif block.slab in self._retired and not self._in_use(block.slab):
            self._retired.remove(block.slab)
            self._drop([block.slab])
            self._dropped([block.slab.number])
        else:
            block.heap.give(block)

    def _in_use(self, slab: Slab) -> bool:
        return any(block.slab is slab for block in (*self._blocks.values(), *self._users, *self._reserved))

    def _drop(self, slabs: Iterable[Slab]) -> None:
        for slab in slabs:
            del self.slabs[slab.number]
            self._by_address.remove((slab.address, slab.number))
            slab.close()

    def place(self, tensor: DeviceTensor) -> tuple[int, int]:
        """Slab and offset of a tensor."""
        block = self._blocks.get(tensor.allocation)
        if block is None:
            self.array(tensor)  # says what is wrong
            raise AssertionError
        return block.slab.number, block.offset + tensor.offset

    def locate(self, address: int) -> tuple[int, int] | None:
        """Slab and offset of an address of this process, if it lies in shared memory."""
        at = bisect_right(self._by_address, (address, self._last + 1)) - 1
        if at < 0:
            return None
        start, number = self._by_address[at]
        return (number, address - start) if address - start < self.slabs[number].size else None

    def close(self) -> None:
        """All memory goes; views that somebody still has keep theirs."""
        self.buffers.clear()
        self._ranks.clear()
        self._blocks.clear()
        self._users.clear()
        self._retired.clear()
        for heap in self._heaps.values():  # who still has one keeps none of its memory
            heap.clear()
        self._heaps.clear()
        self._drop(list(self.slabs.values()))
