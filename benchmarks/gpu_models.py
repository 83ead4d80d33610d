"""The models that benchmarks.gpu_step measures, in clipjax, open_clip and transformers; one worker runs one of them.

Nothing here imports JAX or PyTorch before a contender is made, so that the script can say what is missing.
"""

from __future__ import annotations

import fcntl
import os
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

WINDOWS, WINDOW_SECONDS, PROFILED_STEPS = 4, 1.0, 2


@dataclass(frozen=True)
class Model:
    """A CLIP as OpenAI published it. image: size, patch, width, depth; text: width, depth, length."""

    preset: str
    open_clip: str
    image: tuple[int, int, int, int]
    text: tuple[int, int, int]
    embed_dim: int
    batch: int  # that every contender can hold on a card of 80 GB
    vocab: int = 49408


MODELS = {
    "b32": Model("clip_vit_b32", "ViT-B-32-quickgelu", (224, 32, 768, 12), (512, 12, 77), 512, 1024),
    "b16": Model("clip_vit_b16", "ViT-B-16-quickgelu", (224, 16, 768, 12), (512, 12, 77), 512, 256),
    "l14": Model("clip_vit_l14", "ViT-L-14-quickgelu", (224, 14, 1024, 24), (768, 12, 77), 768, 128),
    "toy": Model("clip_vit_b32", "", (32, 16, 64, 1), (64, 1, 8), 32, 4, 64),
}


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    contender: str
    model: str
    loss: str
    batch: int
    toy: bool = False
    variant: str = ""  # a row of VARIANTS


@dataclass(frozen=True)
class Variant:
    """A clipjax whose step is compiled otherwise, to see what a choice gives."""

    environ: dict[str, str] = field(default_factory=dict)  # of its process
    tower: dict[str, Any] = field(default_factory=dict)  # options of both towers
    cut: bool = False  # whether texts are cut as `clipjax train` cuts them; the other libraries read all columns


VARIANTS = {
    "": Variant(),
    "xla_defaults": Variant(environ={"CLIPJAX_GPU_OPTIONS": "off"}),
    "plain_attention": Variant(tower={"attention": "dense"}),
    "scanned_layers": Variant(tower={"scan_layers": True}),
    "cut_texts": Variant(cut=True),
    "no_graphs": Variant(environ={"XLA_FLAGS": "--xla_gpu_enable_command_buffer="}),
}


class Contender:
    """A library's train step. Subclasses say how to compile it, run it and look at it."""

    library: str  # a key of gpu_workers.LANES

    def __init__(self, cell: Cell):
        self.cell, self.model, self.variant = cell, MODELS[cell.model], VARIANTS[cell.variant]

    def prepare(self) -> dict[str, Any]:
        """begin(), and what of the result is known before anything is timed."""
        started = time.perf_counter()
        self.step = self.begin()
        result = {"seconds_to_prepare": time.perf_counter() - started}
        return result | self.more()

    def begin(self) -> Callable[[], None]:
        """Compiles and makes the state; returns a function that queues one step."""
        raise NotImplementedError

    def wait(self) -> float:
        """Waits for the queued steps; returns the last loss."""
        raise NotImplementedError

    def peak_memory(self) -> int | None:
        raise NotImplementedError

    def kernels(self, run: Callable[[], None]) -> dict[str, tuple[float, int]]:
        """{kernel: (seconds, launches)} on the device while run() runs."""
        raise NotImplementedError

    def more(self) -> dict[str, Any]:
        """Further entries of the result."""
        return {}

    def measure(self) -> dict[str, Any]:
        """Warms up, times WINDOWS windows of steps, and profiles PROFILED_STEPS."""
        step = self.step
        step()
        losses = [self.wait()]
        once = self.timed(step, 2)  # the second step may still compile or capture
        once = self.timed(step, 2)
        count = 1 if self.cell.toy else int(min(100, max(3, WINDOW_SECONDS / once)))
        windows = [self.timed(step, count) for _ in range(WINDOWS)]
        losses.append(self.wait())
        seconds = statistics.median(windows)
        result = {
            "images_per_second": self.cell.batch / seconds,
            "milliseconds": seconds * 1e3,
            "milliseconds_of_windows": [window * 1e3 for window in windows],
            "steps_a_window": count,
            "first_and_last_loss": losses,
            "peak_memory_bytes": self.peak_memory(),
            "kernels": [],
        }
        try:
            result["kernels"] = self.profile(step)
        except Exception as error:  # the measurement stands without them
            result["kernels_error"] = f"{type(error).__name__}: {str(error)[:200]}"
        return result

    def timed(self, step: Callable[[], None], count: int) -> float:
        """Seconds a step, of `count` queued in a row."""
        started = time.perf_counter()
        for _ in range(count):
            step()
        self.wait()
        return (time.perf_counter() - started) / count

    def profile(self, step: Callable[[], None]) -> list[dict[str, Any]]:
        """The kernels of a step by time, the longest first; numbers at the ends of names are dropped."""

        def run() -> None:
            for _ in range(PROFILED_STEPS):
                step()
            self.wait()

        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        for name, (seconds, count) in self.kernels(run).items():
            entry = sums[kernel_name(name)]
            entry[0] += seconds
            entry[1] += count
        whole = sum(seconds for seconds, _ in sums.values()) or 1.0
        longest = sorted(sums.items(), key=lambda item: -item[1][0])[:40]
        return [
            {
                "name": name,
                "milliseconds": seconds * 1e3 / PROFILED_STEPS,
                "count": round(count / PROFILED_STEPS),
                "share": seconds / whole,
            }
            for name, (seconds, count) in longest
        ]


class ClipJax(Contender):
    """This project's step, as `clipjax train` runs it."""

    library = "jax"

    def config(self) -> Any:
        from clipjax.config import ExperimentConfig
        from clipjax.losses import LOSSES
        from clipjax.models.presets import get_preset

        model, base = self.model, get_preset(self.model.preset)
        size, patch, width, depth = model.image
        text_width, text_depth, length = model.text
        options = {"scan_layers": False, "remat": "none", "attention": "auto"} | self.variant.tower
        image = replace(base.image, image_size=size, patch_size=patch, depth=depth, **shape_of(width), **options)
        text = replace(base.text, depth=text_depth, context_length=length, vocab_size=model.vocab, **options)
        text = replace(text, **shape_of(text_width))
        whole = replace(base, image=image, text=text, embed_dim=model.embed_dim, dtype="bfloat16")
        whole = replace(whole, logit_bias_init=-10.0 if self.cell.loss == "sigmoid" else None)
        loss = LOSSES[self.cell.loss].config(name=self.cell.loss)
        return ExperimentConfig(global_batch_size=self.cell.batch, model=whole, loss=loss)

    def batch(self) -> dict[str, np.ndarray]:
        """The columns that the step reads."""
        from clipjax.data.cut import cut_texts
        from clipjax.training.cut import text_cut
        from clipjax.training.step import batch_shapes

        config, (image, text) = self.config(), batch_of(self.cell)
        columns = {"image": image, "text": text, "pair_id": np.full(len(text), -1, np.int32)}
        batch = {name: columns[name] for name in batch_shapes(config)}
        if self.variant.cut:
            ((batch, _),) = cut_texts(iter([(batch, None)]), text_cut(config, None), shards=1)
        return batch

    def begin(self) -> Callable[[], None]:
        import jax

        from clipjax.mesh import batch_sharding, make_mesh
        from clipjax.training.state import abstract_state, create_state
        from clipjax.training.step import compile_lowered, lower_step

        config, batch = self.config(), self.batch()
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        shapes = {name: (column.shape, column.dtype) for name, column in batch.items()}
        step, _ = compile_lowered(lower_step(config, mesh, abstract_state(config, mesh), None, shapes), mesh)
        batch = jax.device_put(batch, batch_sharding(mesh))
        self.state, self.metrics = create_state(config, mesh), None

        def run() -> None:
            self.state, self.metrics = step(self.state, batch)

        return run

    def wait(self) -> float:
        return float(self.metrics["loss"])

    def peak_memory(self) -> int | None:
        import jax

        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def kernels(self, run: Callable[[], None]) -> dict[str, tuple[float, int]]:
        import jax

        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                run()
            (path,) = Path(folder).rglob("*.xplane.pb")
            return device_events(jax.profiler.ProfileData.from_file(str(path)).planes)

    def more(self) -> dict[str, Any]:
        import jax

        from clipjax.planning.compile import plan_step
        from clipjax.planning.flops import BatchFlops
        from clipjax.planning.topology import open_topology

        config = self.config()
        result = {
            "flops_per_pair": BatchFlops(config)(self.batch()) / config.global_batch_size,
            "device_kind": jax.devices()[0].device_kind,
        }
        if not self.cell.toy and not self.cell.variant:
            plan = plan_step(config, open_topology("local"))
            planned = (plan.get("time") or {}).get("estimated_seconds")
            result |= {"planned_milliseconds": planned * 1e3} if planned else {}
        return result


class Torch(Contender):
    """What the PyTorch contenders share: the loss, AdamW, autocast and torch.compile."""

    library = "torch"

    def embedder(self, torch: Any) -> tuple[Any, Callable]:
        """(module, function (pixels [B, 3, H, W], tokens) -> (image embeddings, text embeddings))."""
        raise NotImplementedError

    def begin(self) -> Callable[[], None]:
        from benchmarks.pytorch import import_torch

        torch = self.torch = import_torch()
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        device = "cpu" if self.cell.toy else "cuda"
        module, embed = self.embedder(torch)
        module.to(device).train()
        scale = torch.nn.Parameter(torch.tensor(float(np.log(1 / 0.07)), device=device))
        bias = torch.nn.Parameter(torch.tensor(-10.0, device=device))
        loss_fn = softmax_loss if self.cell.loss == "softmax" else sigmoid_loss
        parameters = [p for p in module.parameters() if p.requires_grad] + [scale, bias]
        adamw = torch.optim.AdamW(
            parameters, lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=not self.cell.toy
        )
        image, text = batch_of(self.cell)
        pixels = torch.from_numpy(image).permute(0, 3, 1, 2).contiguous().to(device)
        tokens = torch.from_numpy(text).long().to(device)

        def loss_of(pixels: Any, tokens: Any, scale: Any, bias: Any) -> Any:
            images, texts = embed((pixels / 255.0 - 0.5) / 0.5, tokens)
            normalise = torch.nn.functional.normalize
            return loss_fn(torch, normalise(images.float(), dim=-1), normalise(texts.float(), dim=-1), scale, bias)

        turn = Turn(os.environ.get("GPU_STEP_LOCK", os.devnull))
        whole = loss_of if self.cell.toy else torch.compile(loss_of, backend=turn.backend(torch))

        def gradients() -> None:
            adamw.zero_grad(set_to_none=True)
            with torch.autocast(device, dtype=torch.bfloat16):
                self.loss = whole(pixels, tokens, scale, bias)
            self.loss.backward()

        def run() -> None:
            gradients()
            adamw.step()

        if not self.cell.toy:
            gradients()
            self.wait()
            adamw.zero_grad(set_to_none=True)
            self.loss = None
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            turn.end()
        return run

    def wait(self) -> float:
        return float(self.loss.detach())

    def peak_memory(self) -> int | None:
        return None if self.cell.toy else self.torch.cuda.max_memory_allocated()

    def kernels(self, run: Callable[[], None]) -> dict[str, tuple[float, int]]:
        profiler = self.torch.profiler
        kind = profiler.ProfilerActivity.CPU if self.cell.toy else profiler.ProfilerActivity.CUDA
        with profiler.profile(activities=[kind]) as profile:
            run()
        sums = {}
        for event in profile.key_averages():
            micros = getattr(event, "self_device_time_total", 0) or (event.self_cpu_time_total if self.cell.toy else 0)
            if micros:
                sums[event.key] = (micros * 1e-6, event.count)
        return sums

    def more(self) -> dict[str, Any]:
        from clipjax.planning.flops import step_flops

        flops = sum(step_flops(ClipJax(self.cell).config()).values())
        return {"flops_per_pair": flops / self.cell.batch}


class OpenClip(Torch):
    """open_clip's CLIP with its own attention (scaled_dot_product_attention inside nn.MultiheadAttention)."""

    def embedder(self, torch: Any) -> tuple[Any, Callable]:
        import open_clip

        if self.cell.toy:
            size, patch, width, depth = self.model.image
            text_width, text_depth, length = self.model.text
            model = open_clip.model.CLIP(
                self.model.embed_dim,
                {"image_size": size, "patch_size": patch, "width": width, "layers": depth, "head_width": 64},
                {"context_length": length, "vocab_size": self.model.vocab, "width": text_width, "heads": 1}
                | {"layers": text_depth},
                quick_gelu=True,
            )
        else:
            model = open_clip.create_model(self.model.open_clip)
        return model, lambda pixels, tokens: (model.encode_image(pixels), model.encode_text(tokens))


class Transformers(Torch):
    """transformers' CLIPModel with attn_implementation="sdpa"."""

    def embedder(self, torch: Any) -> tuple[Any, Callable]:
        from transformers import CLIPConfig, CLIPModel

        size, patch, width, depth = self.model.image
        text_width, text_depth, length = self.model.text

        def tower(width: int, depth: int) -> dict[str, int]:
            return {
                "hidden_size": width,
                "intermediate_size": 4 * width,
                "num_hidden_layers": depth,
                "num_attention_heads": width // 64,
            }

        last = self.model.vocab - 1
        ends = {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": 0}
        config = CLIPConfig(
            vision_config=tower(width, depth) | {"image_size": size, "patch_size": patch},
            text_config=tower(text_width, text_depth)
            | {"vocab_size": self.model.vocab, "max_position_embeddings": length}
            | ends,
            projection_dim=self.model.embed_dim,
        )
        model = CLIPModel._from_config(config, attn_implementation="sdpa")

        def embed(pixels: Any, tokens: Any) -> tuple[Any, Any]:
            images = model.vision_model(pixel_values=pixels).pooler_output
            texts = model.text_model(input_ids=tokens).pooler_output
            return model.visual_projection(images), model.text_projection(texts)

        return model, embed


class Turn:
    """A lock on the card: of the processes that compile side by side, one at a time runs what it has compiled."""

    def __init__(self, path: str):
        self.path, self.file = path, None

    def backend(self, torch: Any) -> Callable:
        """torch.compile's own backend, whose programs take the lock when they first run."""
        compile_graph = torch._dynamo.lookup_backend("inductor")

        def backend(graph: Any, inputs: Any) -> Callable:
            compiled = compile_graph(graph, inputs)

            def run(*args: Any) -> Any:
                self.take()
                return compiled(*args)

            return run

        return backend

    def take(self) -> None:
        if self.file is None:
            self.file = open(self.path, "w")  # noqa: SIM115 (end() closes it)
            fcntl.flock(self.file, fcntl.LOCK_EX)

    def end(self) -> None:
        """Lets the next one run; this process does not wait again."""
        fcntl.flock(self.file, fcntl.LOCK_UN)


CONTENDERS: dict[str, type[Contender]] = {"clipjax": ClipJax, "transformers": Transformers, "open_clip": OpenClip}


def softmax_loss(torch: Any, images: Any, texts: Any, scale: Any, bias: Any) -> Any:
    """CLIP's loss, in float32."""
    with torch.autocast(images.device.type, enabled=False):
        logits = scale.exp() * images @ texts.T
        labels = torch.arange(len(images), device=images.device)
        cross_entropy = torch.nn.functional.cross_entropy
        return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2 + 0 * bias


def sigmoid_loss(torch: Any, images: Any, texts: Any, scale: Any, bias: Any) -> Any:
    """SigLIP's loss, in float32."""
    with torch.autocast(images.device.type, enabled=False):
        logits = scale.exp() * images @ texts.T + bias
        signs = 2 * torch.eye(len(images), device=images.device) - 1
        return -torch.nn.functional.logsigmoid(signs * logits).sum() / len(images)


def batch_of(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [B, H, W, 3] noise, int32 [B, L] captions of 5 to 39 tokens between start and end, padded with zeros)."""
    model, rng = MODELS[cell.model], np.random.default_rng(0)
    size, length = model.image[0], model.text[2]
    image = rng.integers(0, 256, (cell.batch, size, size, 3), dtype=np.uint8)
    text = np.zeros((cell.batch, length), np.int32)
    for row in text:
        count = int(rng.integers(5, 40)) if length > 42 else length - 3
        row[: count + 2] = [model.vocab - 2, *rng.integers(1, model.vocab - 2, count), model.vocab - 1]
    return image, text


def shape_of(width: int) -> dict[str, int]:
    return {"width": width, "num_heads": width // 64, "mlp_dim": 4 * width}


def device_events(planes: Iterable[Any]) -> dict[str, tuple[float, int]]:
    """{event: (seconds, count)} of a profile's kernels: the GPUs' streams; without a GPU, XLA's threads."""
    planes = [(plane, list(plane.lines)) for plane in planes]
    gpus = [(p, lines) for p, lines in planes if p.name.startswith("/device:GPU")]
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for _, lines in gpus or [(p, lines) for p, lines in planes if p.name.startswith("/host:CPU")]:
        for line in lines:
            if gpus and not line.name.startswith("Stream"):
                continue
            if not gpus and "XLA" not in line.name:
                continue
            for event in line.events:
                entry = sums[event.name]
                entry[0] += event.duration_ns * 1e-9
                entry[1] += 1
    return {name: (seconds, int(count)) for name, (seconds, count) in sums.items()}


def kernel_name(name: str) -> str:
    """A kernel's name without what numbers its copies: "loop_add_fusion_12" and "loop_add_fusion.3" are one."""
    return re.sub(r"([._]\d+)+$", "", name)[:100]
