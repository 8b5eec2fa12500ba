"""Run one denoising step of a batch of videos on the ranks of its mesh."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from opensora_launch.model.kernels import KernelCall
from opensora_launch.parallel.collectives import all_gather_padded
from opensora_launch.parallel.mesh import Mesh
from opensora_launch.parallel.sequence_attention import SequenceAttention, sharded_attention
from opensora_launch.parallel.split import TokenShare
from opensora_launch.schema.even_shares import share_sizes, share_slices

Forward = Callable[..., Tensor]  # MMDiT.forward


@dataclass(frozen=True)
class RowInputs:
    """The whole inputs of one guidance row, with T text and S video tokens."""

    video: int  # index in the batch
    t: float  # in [0, 1]
    txt: Float[Tensor, "T context"]
    y_vec: Float[Tensor, "vec"]
    cond: Float[Tensor, "S cond_channels"] | None
    guidance: float


@dataclass(frozen=True)
class ShardedModel:
    """A transformer that every rank runs on its share of the rows and tokens."""

    forward: Forward
    kernel: KernelCall
    meshes: Mapping[int, Mesh]  # by number of rows in a step
    sit_out: Callable[[], None] | None = None  # called on a rank without a row, while the others compute
    rows_at_once: int = 0  # in one forward of a rank; 0 means all of its rows
    attention: SequenceAttention = sharded_attention

    @torch.no_grad()
    def predict(
        self,
        latents: Float[Tensor, "V S C"],
        img_ids: Float[Tensor, "1 S A"],
        rows: Sequence[RowInputs],
    ) -> Float[Tensor, "R S C"]:
        """Return the prediction for every row, on every rank of the mesh.

        Rows are split over the cfg axis, and the tokens of a row over ring and ulysses. A rank without a row (if there
        are fewer rows than ranks) waits for the others' results. All ranks take part in the same number of forwards.
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
        num_text = rows[0].txt.shape[0]
        total = num_text + latents.shape[1]
        share = TokenShare.of(num_text, total, mesh.sequence_index, mesh.layout.sequence)
        txt = share.cut_text(torch.stack([row.txt for row in rows]))
        img, ids = share.cut_video(latents), share.cut_video(img_ids)
        conds = [row.cond for row in rows if row.cond is not None]
        return self.forward(
            img=torch.stack([img[row.video] for row in rows]),
            img_ids=ids,
            txt=txt,
            txt_ids=ids.new_zeros(1, txt.shape[1], ids.shape[2]),
            timesteps=_on_device([row.t for row in rows], latents.device),
            y_vec=torch.stack([row.y_vec for row in rows]),
            cond=share.cut_video(torch.stack(conds)) if conds else None,
            guidance=_on_device([row.guidance for row in rows], latents.device),
            attend=self.attention(mesh, num_text, total, self.kernel),
        )


def own_rows(mesh: Mesh, count: int) -> slice:
    """Return which rows of a step this rank computes; there may be none."""
    return share_slices(count, mesh.cfg.size)[mesh.cfg.index]


def _on_device(numbers: Sequence[float], device: torch.device) -> Float[Tensor, "n"]:
    """Return the numbers in fp32. Each is an argument of a kernel: a copy of a list would make the host wait for it."""
    return torch.stack([torch.full((), number, dtype=torch.float32, device=device) for number in numbers])


def _gather(
    part: Tensor, latents: Float[Tensor, "V S C"], mesh: Mesh, counts: tuple[int, int]
) -> Float[Tensor, "R S C"]:
    """Put the rows and tokens of all ranks together on every rank: one all-gather of equal blocks, as gloo requires."""
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
