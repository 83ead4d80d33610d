"""open_clip's and transformers' train steps, as benchmarks.gpu_step measures them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu_clipjax import ClipJax
from benchmarks.gpu_contender import Contender
from benchmarks.gpu_models import batch_of


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
        whole = loss_of if self.cell.toy else torch.compile(loss_of, backend=turn.backend())

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

    def backend(self) -> Callable:
        """torch.compile's own backend, whose programs take the lock when they first run."""
        from torch._dynamo import lookup_backend

        compile_graph = lookup_backend("inductor")

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
