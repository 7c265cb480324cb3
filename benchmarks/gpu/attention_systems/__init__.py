"""Who computes a step's attention: our kernel with and without sharing, and every baseline."""

from __future__ import annotations

from benchmarks.gpu.attention_systems.flashinfer import BATCH, CASCADE, DECODE, PARTS
from benchmarks.gpu.attention_systems.flex import FlexAttention
from benchmarks.gpu.attention_systems.ours import OurKernel
from benchmarks.gpu.attention_systems.sdpa import Sdpa
from benchmarks.gpu.attention_systems.system import AttentionSystem

SHARED, PAGED = "parrot_shared", "parrot_paged"
SYSTEMS: tuple[AttentionSystem, ...] = (
    OurKernel(SHARED, share=True),
    OurKernel(PAGED, share=False),
    CASCADE,
    PARTS,
    BATCH,
    DECODE,
    Sdpa(),
    FlexAttention(),
)
