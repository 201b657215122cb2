"""A plan of a training run as text."""

from collections.abc import Sequence
from datetime import timedelta

from transformer_jax.analysis.plan import Plan
from transformer_jax.config import flatten


def format_plan(plan: Plan) -> str:
    """What `train.py --dry-run` prints. Every number says where it is from."""
    return "\n\n".join(
        f"{title}\n{text}"
        for title, text in (
            ("CONFIG", "\n".join(f"  {key} = {value!r}" for key, value in flatten(plan.config).items())),
            ("DATA", plan.data),
            ("PARAMETERS", _parameters(plan)),
            ("PLACEMENT", _placement(plan)),
            ("STEP", _step(plan)),
            ("MEMORY", _memory(plan)),
            ("TIME", _time(plan)),
        )
    )


def _parameters(plan: Plan) -> str:
    rows = [(name, f"{count:,}", f"{count / plan.parameters:.1%}") for name, count in _folded(plan.modules)]
    return _columns([*rows, ("all", f"{plan.parameters:,}", "")])


def _folded(modules: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Runs of equal layers in one line, with the sum of what they have."""
    found: list[tuple[str, int]] = []
    start, times = "", 0
    for (name, count), (following, next_count) in zip(modules, [*modules[1:], ("", 0)], strict=True):
        start, times = start or name, times + 1
        stem, _, number = name.rpartition("_")
        if number.isdecimal() and following == f"{stem}_{int(number) + 1}" and next_count == count:
            continue
        found.append((name if times == 1 else f"{start} … {number}, {count:,} each", times * count))
        start, times = "", 0
    return found


def _placement(plan: Plan) -> str:
    rows = [("devices", plan.devices), ("mesh", ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items()))]
    rows.append(("rows of a batch", f"over {plan.batch_placement}"))
    for name, arrays, count in plan.placements:
        rows.append((f"{arrays} arrays", f"{count:,} parameters {name}"))
    return _columns(rows, right=False)


def _step(plan: Plan) -> str:
    head = ("batch", "share", "GFLOP, counted", "GFLOP, XLA", "MiB a device, XLA", "ms", "GFLOP/s")
    rows = [head]
    for shape in plan.shapes:
        rows.append(
            (
                shape.name,
                f"{shape.share:.0%}",
                f"{shape.matmul_flops / 1e9:,.2f}",
                "-" if shape.xla_flops is None else f"{shape.xla_flops / 1e9:,.2f}",
                "-" if shape.xla_memory is None else f"{shape.xla_memory / 2**20:,.0f}",
                "-" if shape.seconds is None else f"{1000 * shape.seconds:,.1f}",
                "-" if not shape.seconds else f"{shape.matmul_flops / shape.seconds / 1e9:,.0f}",
            )
        )
    tokens = plan.step_tokens
    rule = "" if tokens is None else f"; by the rule 6 x parameters x tokens, {6e-9 * plan.parameters * tokens:,.2f}"
    notes = (
        f"Mean over an epoch: {plan.step_flops / 1e9:,.2f} GFLOP a step{rule}.",
        "counted: matrix products of the traced step, both ways, padding included, nothing twice, over all devices.",
        "XLA: cost_analysis and memory_analysis of the compiled step, on one device; elementwise work included.",
    )
    return "\n".join([_columns(rows), *notes])


def _memory(plan: Plan) -> str:
    rows = [(name, f"{size / 2**20:,.1f} MiB") for name, size in plan.state_bytes.items() if size]
    rows.append(("train state, most on a device", f"{plan.device_bytes / 2**20:,.1f} MiB"))
    reserved = [shape.xla_memory for shape in plan.shapes if shape.xla_memory is not None]
    if reserved:
        rows.append(("a step, most on a device", f"{max(reserved) / 2**20:,.1f} MiB"))
    note = "By formula, from shapes, over all devices; a step is XLA's: state, gradients and temporaries together."
    if plan.device_room is not None:
        rows.append(("a device has", f"{plan.device_room / 2**20:,.1f} MiB"))
    return f"{_columns(rows)}\n{note}"


def _time(plan: Plan) -> str:
    rows = [
        ("workdir", plan.workdir),
        ("compiling", f"{plan.compile_seconds:.1f} s for {len(plan.shapes)} kinds of batch"),
    ]
    if plan.step_seconds is None:
        rows.append(("training", plan.timing))
    else:
        whole = timedelta(seconds=round(plan.step_seconds * plan.remaining_steps))
        epochs, rate = plan.remaining_steps / plan.epoch_batches, (plan.step_tokens or 0.0) / plan.step_seconds
        rows.append(("a step", f"{1000 * plan.step_seconds:,.1f} ms in the mean, {rate:,.0f} tokens/s"))
        rows.append(("training", f"{whole} for {plan.remaining_steps:,} steps, {epochs:.1f} epochs: {plan.timing}"))
    return _columns(rows, right=False)


def _columns(rows: Sequence[Sequence[str]], right: bool = True) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(w) if right and k else cell.ljust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
