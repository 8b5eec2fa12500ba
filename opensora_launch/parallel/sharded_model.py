"""One denoising step of one batch of videos on the ranks of its mesh."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from opensora_launch.parallel.sequence_attention import Kernel, sharded_attention
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.parallel.split import TokenShare, share_sizes, share_slices

Forward = Callable[..., Tensor]  # MMDiT.forward
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v of our tokens (B s N D) -> their attention


@dataclass(frozen=True)
class RowInputs:
    """Inputs of one guidance row, whole. T text and S video tokens."""

    video: int  # index in the batch
    t: float  # in [0, 1]
    txt: Float[Tensor, "T context"]
    y_vec: Float[Tensor, "vec"]
    cond: Float[Tensor, "S cond_channels"] | None
    guidance: float


@dataclass(frozen=True)
class ShardedModel:
    """A transformer that every rank runs on its share of rows and tokens."""

    forward: Forward
    kernel: Kernel
    meshes: Mapping[int, Mesh]  # by the number of rows of a step
    sit_out: Callable[[], None] | None = None  # what a rank without a row does while the others compute
    rows_at_once: int = 0  # in one forward of a rank; 0 is all of its rows
    attention: Callable[[Mesh, int, Kernel], Attend] = sharded_attention  # by mesh and tokens of the whole sequence

    @torch.no_grad()
    def predict(
        self,
        latents: Float[Tensor, "V S C"],
        img_ids: Float[Tensor, "1 S A"],
        rows: Sequence[RowInputs],
    ) -> Float[Tensor, "R S C"]:
        """The prediction for every row, on every rank of the mesh.

        Rows are dealt over the cfg axis, the tokens of a row over ring and ulysses. A rank without a row
        (fewer rows than the axis is long) waits for the others' results, and all take part in as many forwards.
        """
        mesh = self.meshes[len(rows)]
        own, num_text = rows[own_rows(mesh, len(rows))], rows[0].txt.shape[0]
        most = max(share_sizes(len(rows), mesh.cfg.size))
        at_once = self.rows_at_once or most
        parts = [self._share(mesh, latents, img_ids, own[i : i + at_once]) for i in range(0, len(own), at_once)]
        for _ in range(-(-most // at_once) - len(parts)):
            if self.sit_out:
                self.sit_out()
        part = torch.cat(parts) if parts else latents.new_empty(0)
        return _gather(part, latents, mesh, (num_text, len(rows)))

    def _share(self, mesh: Mesh, latents: Tensor, img_ids: Tensor, rows: Sequence[RowInputs]) -> Float[Tensor, "r s C"]:
        count, num_text = len(rows), rows[0].txt.shape[0]
        total = num_text + latents.shape[1]
        share = TokenShare.of(num_text, total, mesh.sequence_index, mesh.layout.sequence)
        txt = share.cut_text(torch.stack([row.txt for row in rows]))
        ids = share.cut_video(img_ids).expand(count, -1, -1)
        conds = [row.cond for row in rows if row.cond is not None]
        return self.forward(
            img=share.cut_video(latents)[[row.video for row in rows]],
            img_ids=ids,
            txt=txt,
            txt_ids=ids.new_zeros(count, txt.shape[1], ids.shape[2]),
            timesteps=torch.tensor([row.t for row in rows], dtype=torch.float32, device=latents.device),
            y_vec=torch.stack([row.y_vec for row in rows]),
            cond=share.cut_video(torch.stack(conds)) if conds else None,
            guidance=torch.tensor([row.guidance for row in rows], dtype=torch.float32, device=latents.device),
            attend=self.attention(mesh, total, self.kernel),
        )


def own_rows(mesh: Mesh, count: int) -> slice:
    """Which of a step's rows this rank computes; may be none."""
    return share_slices(count, mesh.cfg.size)[mesh.cfg.index]


def _gather(
    part: Tensor, latents: Float[Tensor, "V S C"], mesh: Mesh, counts: tuple[int, int]
) -> Float[Tensor, "R S C"]:
    """Every rank's rows and tokens, put together on all of them. One all-gather of equal blocks (gloo wants that)."""
    num_text, num_rows = counts
    num_video, channels = latents.shape[1:]
    rows = share_slices(num_rows, mesh.cfg.size)
    sequence = mesh.layout.sequence
    tokens = [TokenShare.of(num_text, num_text + num_video, i, sequence).video for i in range(sequence)]
    if mesh.shares.size == 1:
        return part.to(latents.dtype)
    room = max(share_sizes(num_rows, mesh.cfg.size)) * max(s.stop - s.start for s in tokens) * channels
    blocks = all_gather_padded(part.to(latents.dtype).reshape(-1), room, mesh.shares)
    out = latents.new_empty(num_rows, num_video, channels)
    for index, block in enumerate(blocks):
        cfg, place = divmod(index, sequence)
        target = out[rows[cfg], tokens[place]]
        target.copy_(block[: target.numel()].view(target.shape))
    return out


def all_gather_padded(part: Float[Tensor, "n"], room: int, axis: Axis) -> Float[Tensor, "ranks room"]:
    """All ranks' 1-D parts, each at the start of a block of `room` elements; what follows means nothing."""
    sent = part.new_zeros(room)
    sent[: part.numel()] = part
    got = part.new_empty(axis.size, room)
    with axis.exchange(part.numel() * part.element_size() * (axis.size - 1)):
        dist.all_gather(list(got.unbind(0)), sent, group=axis.group)
    return got
