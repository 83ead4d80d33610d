"""clipjax's train step, as benchmarks.gpu_step measures it."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_contender import Contender
from benchmarks.gpu_models import batch_of


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
            try:
                plan = plan_step(config, open_topology("local"))
                planned = (plan.get("time") or {}).get("estimated_seconds")
                result |= {"planned_milliseconds": planned * 1e3} if planned else {}
            except Exception as error:  # a card that plans do not know, say: the step is measured all the same
                result["plan_error"] = f"{type(error).__name__}: {str(error)[:200]}"
        return result


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
