"""Keep fewer offloaded blocks on the GPUs where less memory is free than was planned with. Pure."""

from dataclasses import replace

from opensora_launch.plan.memory import Memory, memory_of_run
from opensora_launch.plan.networks import network_of
from opensora_launch.plan.placement import Placement
from opensora_launch.plan.plan import Plan
from opensora_launch.plan.video_size import video_size


def memory_of_plan(plan: Plan, placement: Placement) -> Memory:
    """Return the memory of a plan's steps with this placement; what is set aside is counted without NVLink."""
    shape, model = plan.geometry, plan.model
    return memory_of_run(
        network_of(model, fp8_products=plan.numerics.fp8_products),
        shape.grid,
        video_size(shape, model.vae),
        plan.layouts,
        gpus_per_node=plan.machine.gpus_per_node,
        placement=placement,
        element_bytes=4 if plan.precision == "fp32" else 2,
        engine=plan.engine,
        nvlink=False,
        overlap=plan.overlap,
    )


def needed_bytes(plan: Plan, placement: Placement) -> float:
    """Return the peak of what PyTorch allocates on a GPU: everything except what is set aside."""
    memory = memory_of_plan(plan, placement)
    return memory.peak - memory.set_aside


def fitting_placement(plan: Plan, free_bytes: float) -> Placement:
    """Return the plan's placement with as many of its resident blocks as fit in the bytes that are free on each GPU.

    A number that the user has set remains, like everything else: only a plan that may continue without resident blocks
    after memory ran out begins with fewer of them. Where blocks are does not change the video.
    """
    planned = plan.placement
    if plan.smaller != replace(planned, resident_blocks=0):
        return planned
    counts = range(planned.resident_blocks, 0, -1)
    ways = (replace(planned, resident_blocks=count) for count in counts)
    return next((way for way in ways if needed_bytes(plan, way) <= free_bytes), plan.smaller)
