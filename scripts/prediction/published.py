"""Read published_scaling.json as the planner's own facts: network, counts of a step, card."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from opensora_launch.plan.layout import Layout
from opensora_launch.plan.networks import NETWORKS, VAES, Network, TokenGrid, token_grid
from opensora_launch.plan.times import StepCounts, StepLoad, step_counts
from opensora_launch.schema.cards import Card

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "benchmarks" / "published_scaling.json"
MODELS = {  # words in an entry's model -> name in NETWORKS; the first match counts
    r"open-sora 2": "open_sora_v2",
    r"open-sora 1": "open_sora_v1_2",
    r"hunyuan": "hunyuan_video",
    r"flux\.?2": "flux2_dev",
    r"flux": "flux1_dev",
    r"cogvideox-2b": "cogvideox_2b",
    r"cogvideo|consisid": "cogvideox_5b",
    r"wan2\.2.*5b": "wan2.2_ti2v_5b",
    r"wan2\.2": "wan2.2_a14b",
    r"wan.*1\.3b": "wan2.1_1.3b",
    r"wan.*14b": "wan2.1_14b",
    r"qwen-image": "qwen_image",
    r"z-image": "z_image",
    r"step-video": "step_video",
    r"mochi": "mochi_1",
    r"latte": "latte_1",
}
CARDS = {  # words in an entry's GPU -> card, with NVLink and with PCIe
    r"gb200": ("gb200", "gb200"),
    r"b200": ("b200", "b200"),
    r"h200": ("h200", "h200"),
    r"h100": ("h100_sxm", "h100_pcie"),
    r"h800": ("h800", "h100_pcie"),
    r"h20\b": ("h20", "h20"),
    r"a100|a800": ("a100_80gb_sxm", "a100_80gb_pcie"),
    r"v100": ("v100", "v100"),
    r"l40s": ("l40s", "l40s"),
    r"l40\b": ("l40", "l40"),
    r"l20\b": ("l20", "l20"),
    r"l4\b": ("l4", "l4"),
    r"5090": ("rtx5090", "rtx5090"),
    r"4090": ("rtx4090", "rtx4090"),
    r"4080": ("rtx4080", "rtx4080"),
    r"3090": ("rtx3090", "rtx3090"),
    r"3080": ("rtx3080", "rtx3080"),
    r"6000 ada": ("rtx6000_ada", "rtx6000_ada"),
    r"a6000": ("rtx_a6000", "rtx_a6000"),
}
UNKNOWN_CARD = Card(name="unknown", memory_gib=80, bandwidth_gb_s=2000, bf16_tflops=300, nvlink_gb_s=300)
VAE_FLOPS = {name: vae.equal_flops for name, vae in VAES.items()}
VAE_FLOPS["hunyuan"] *= 1.6  # its tiles overlap
VAE_FLOPS_ELSE = 10e6
AXES = ("dp", "cfg", "ring", "ulysses", "tp", "pipefusion")
COUNTS = ("nodes", "steps", "cfg_branches", "width", "height", "frames", "tokens", "tokens_computed", "hidden", "heads")


@dataclass(frozen=True)
class Measurement:
    """Hold one published measurement; `counts` are for one denoising step, None for VAE decoding alone."""

    index: int
    table: str
    program: str
    card: Card
    link: str
    nodes: int
    gpus: int
    layout: Layout
    compiled: bool | None
    model: str
    config: str
    seconds: float
    steps: int
    counts: StepCounts | None
    vae_flops: float  # 0 if the time excludes decoding
    end_to_end: bool


def read_measurements(file: Path) -> tuple[list[Measurement], list[tuple[int, str]]]:
    """Return the measurements that can be predicted, and for the other usable ones the reason why not."""
    cards, content = catalogue(), json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, list):
        raise ValueError("it must be a list of measurements")
    rows, left_out = [], []
    for index, data in enumerate(content):
        if isinstance(data, dict) and not data.get("usable"):
            continue
        if why := ", ".join(_wrong(data)):
            left_out.append((index, f"not predictable: {why}"))
            continue
        try:
            rows.append(_row(index, data, cards))
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            left_out.append((index, f"not predictable: {error!r}"))
    return rows, left_out


def _wrong(data: Any) -> Iterator[str]:
    """Return the names of required keys that an entry lacks."""
    if not isinstance(data, dict):
        yield f"a measurement must be an object, not {type(data).__name__}"
        return
    if not _is_number(data.get("seconds")):
        yield f"seconds={data.get('seconds')} must be a number above 0"
    if data.get("link") not in ("nvlink", "pcie"):
        yield f"link={data.get('link')} must be nvlink or pcie"
    layout = data.get("layout")
    if not isinstance(layout, dict):
        yield f"layout={layout} must give the degrees"
    else:
        degrees = {f"layout.{axis}": layout.get(axis) for axis in AXES}
        yield from (f"{name}={n} must be 1, 2, ..." for name, n in degrees.items() if not _is_count(n or 1))
    yield from (f"{name}={data[name]} must be 1, 2, ..." for name in COUNTS if not _is_count(data.get(name) or 1))
    if not _is_count(data.get("n_gpus")):
        yield f"n_gpus={data.get('n_gpus')} must be 1, 2, ..."
    for name in ("table", "source", "model", "gpu"):
        if not (isinstance(data.get(name), str) and data[name]):
            yield f"{name}={data.get(name)} must be a name"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_count(value: Any) -> bool:
    return _is_number(value) and value == int(value)


def catalogue() -> dict[str, Card]:
    files = sorted((ROOT / "configs" / "hardware").glob("*.yaml"))
    return {f.stem: Card(**yaml.safe_load(f.read_text())) for f in files if f.stem != "auto"}


def card_of(gpu: str, link: str, cards: Mapping[str, Card]) -> Card:
    """Return the catalogue's card; an unknown card gets plain rates, which must be fitted."""
    name = next((pair[link == "pcie"] for words, pair in CARDS.items() if re.search(words, gpu.lower())), None)
    return cards[name] if name else replace(UNKNOWN_CARD, name=re.sub(r"\W+", "_", gpu.lower()))


def network_of_row(data: Mapping[str, Any]) -> Network:
    """Return the network by name, or from the entry's own width, heads and depth if they differ or the name is new."""
    name = next((net for words, net in MODELS.items() if re.search(words, str(data["model"]).lower())), None)
    hidden, heads, blocks = data.get("hidden"), data.get("heads"), _blocks(data.get("layers"))
    known = NETWORKS.get(name or "")
    if known and hidden in (None, known.hidden) and (not blocks or abs(blocks - known.blocks) <= 2):
        return known
    parameters = _parameters(data.get("params"))
    if not hidden and not parameters:
        raise ValueError(f"the model {data['model']} is unknown")
    if not hidden:
        assert parameters is not None
        hidden = round((parameters / 12 / (blocks or 40)) ** 0.5 / 128) * 128
    depth = blocks or max(1, round((parameters or 12e9) / (12 * hidden**2)))
    wide = (parameters or 12.0 * depth * hidden**2) / depth - 4.0 * hidden**2
    return Network(
        str(data["model"]), hidden, heads or hidden // 128, hidden // (heads or hidden // 128),
        max(hidden, round(min(wide, 16.0 * hidden**2) / 2 / hidden)), joint_blocks=depth,
        text_tokens=256, rows=data.get("cfg_branches") or 1, steps=data.get("steps") or 50, parameters=parameters,
    )  # fmt: skip


def _blocks(layers: Any) -> int:
    return sum(int(number) for number in re.findall(r"\d+", str(layers or "")))


def _parameters(text: Any) -> float | None:
    """Return the active parameters of text such as "27B MoE / 14B active"."""
    found = re.findall(r"([\d.]+)\s*B", str(text or ""))
    return float(found[-1]) * 1e9 if found else None


def _row(index: int, data: Mapping[str, Any], cards: Mapping[str, Card]) -> Measurement:
    layout, link = data["layout"], data["link"]
    if (layout.get("pipefusion") or 1) > 1:
        raise ValueError("PipeFusion is not modelled")
    degrees = Layout(*(layout.get(axis) or 1 for axis in ("dp", "cfg", "ring", "ulysses", "tp")))
    kind, config, nodes = data["kind"], str(data.get("config") or ""), data.get("nodes") or 1
    gpus = data["n_gpus"]
    pixels = float((data.get("width") or 0) * (data.get("height") or 0) * (data.get("frames") or 1))
    net = Network("vae", 128, 1, 128, 128) if kind == "vae_decode" else network_of_row(data)
    load = StepLoad(
        net=net,
        grid=_grid(net, data),
        rows=data.get("cfg_branches") or (1 if kind == "attention" else net.rows),
        layout=replace(degrees, dp=1),
        gpus_per_node=max(1, gpus // nodes),
        sharded=gpus if "fsdp" in config.lower() else 1,
        rows_at_once="wan" in str(data["model"]).lower(),  # these pipelines compute guidance rows one after another
    )
    counts = None if kind == "vae_decode" else step_counts(load)
    if counts and kind == "attention":
        counts = replace(counts, matmul_flops=0.0, elementwise_bytes=0.0, launches=1)
    end_to_end = kind == "end_to_end"
    return Measurement(
        index=index, table=data["table"], program=re.split(r"[/ ]", data["source"])[0],
        card=card_of(data["gpu"], link, cards), link=link, nodes=nodes, gpus=gpus, layout=degrees,
        compiled=data.get("compiled"), model=data["model"], config=config,
        seconds=float(data["seconds"]), steps=(data.get("steps") or net.steps) if end_to_end else 1, counts=counts,
        vae_flops=pixels * VAE_FLOPS.get(net.vae, VAE_FLOPS_ELSE) if end_to_end or kind == "vae_decode" else 0.0,
        end_to_end=end_to_end,
    )  # fmt: skip


def _grid(net: Network, data: Mapping[str, Any]) -> TokenGrid:
    tokens = data.get("tokens_computed")
    text = net.text_tokens
    if not tokens and data.get("tokens"):
        tokens, text = data["tokens"], 0
    if not tokens:
        return token_grid(net, data["width"], data["height"], data.get("frames") or 1)
    if net.spatial_blocks:
        frames = token_grid(net, data["width"], data["height"], data["frames"]).latent_frames
        return TokenGrid(frames, max(1, tokens // frames), text)
    return TokenGrid(1, int(tokens), text)


def twins(rows: Sequence[Measurement]) -> dict[int, str]:
    """Map measurements that only repeat another table's to that table; one of each remains."""
    copies: dict[int, str] = {}
    for table in dict.fromkeys(row.table for row in rows):
        mine = [row for row in rows if row.table == table]
        found = {
            row.index: next((o.table for o in rows if _same(row, o) and o.index not in copies), "") for row in mine
        }
        if all(found.values()):
            copies |= found
    return copies


def _same(a: Measurement, b: Measurement) -> bool:
    same = (a.card.name, a.model, a.gpus, a.steps, a.seconds) == (b.card.name, b.model, b.gpus, b.steps, b.seconds)
    return same and a.table != b.table
