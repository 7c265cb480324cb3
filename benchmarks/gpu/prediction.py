"""What the cost model makes of a work list: the time that its rates add up to."""

from __future__ import annotations

from parrot_kernels.attention_plan import BLOCK_SIZE
from parrot_kernels.gpu.sharing_cost import SharingCost
from parrot_kernels.gpu.work_list import Tiling, WorkList


def predicted_s(work: WorkList, tiling: Tiling, cost: SharingCost) -> float:
    """Return the seconds of ``work``: its launch, its keys (read first, or again) or products, its items and parts."""
    shape = tiling.shape
    read_keys, flops, blocks = 0, 0, set()
    for item in work.items:
        read_keys += item.num_keys
        flops += shape.flops(tiling.tile_rows(item.num_entries), item.num_keys)
        blocks.update(work.blocks[item.first_block : item.first_block + item.num_keys // BLOCK_SIZE])
    own_keys = len(blocks) * BLOCK_SIZE
    reads = own_keys * shape.bytes_per_key / cost.bytes_per_s
    reads += max(0, read_keys - own_keys) * shape.bytes_per_key / cost.reread_bytes_per_s
    items = len(work.items) * shape.kv_heads * cost.item_s
    parts = work.num_parts * shape.heads * cost.part_s
    return cost.launch_s + max(reads, flops / cost.flops_per_s) + items + parts
