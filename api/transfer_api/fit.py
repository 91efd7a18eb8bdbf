"""What to change in a training stage that does not fit into memory, with numbers from the formulas of cost.py.

The formulas know neither the allocator's gaps nor what the libraries hold, so HEADROOM of the memory is left to them. Where a
stage ran out of memory that should have fitted by the formulas, they are wrong for it: then half of a pass is the advice.
"""

from __future__ import annotations

import math
from typing import cast

from transfer_api.cost import GPU_RESOURCE, ModelSize, StageCost, stage_cost
from transfer_api.spec import ActivationCheckpointing, Lora, Method, Optimizer, Sharding
from transfer_api.stage import StageKind, StagePlan, TrainingParameters

HEADROOM = 0.1


def layers_again(stage: StagePlan, size: ModelSize | None, *, layers: int, processes: int, available: int, micro_batch_tokens: int) -> int:
    """How many layers of a training stage, from the first, are computed again in the backward pass.

    All or none as the stage asks for it; with Auto the fewest with which a pass fits, and all where none is enough.

    Args:
        stage: the training stage.
        size: the model that it starts from; None where that is unknown.
        layers: that the model has.
        processes: over which weights and optimizer are spread.
        available: bytes of one process; 0 where that is unknown.
        micro_batch_tokens: in one pass.
    """
    match stage.execution.activation_checkpointing:
        case ActivationCheckpointing.ALWAYS:
            return layers
        case ActivationCheckpointing.NEVER:
            return 0
        case ActivationCheckpointing.AUTO:
            if size is None or available <= 0:
                return 0
            room = (1 - HEADROOM) * available
            fit = (again for again in range(layers) if _cost(stage, size, micro_batch_tokens, again).memory_bytes(processes) <= room)
            return next(fit, layers)


def advice(stage: StagePlan, size: ModelSize | None, *, processes: int, available: int, micro_batch_tokens: int, gpu: bool) -> str:
    """One sentence or several on what to set, the least change first.

    Args:
        stage: the training stage that ran out of memory.
        size: the model that it starts from; None where that is unknown.
        processes: over which weights and optimizer are spread.
        available: bytes of one process; 0 where that is unknown.
        micro_batch_tokens: in one pass, as it ran.
        gpu: whether it is a GPU's memory.
    """
    section = "pretraining" if stage.kind is StageKind.PRETRAINING else "instructionTuning"
    parameters = cast(TrainingParameters, stage.typed_parameters())
    length = parameters.sequence_length
    if size is None or not available:
        ways = [f"set {section}.microBatchTokens: {_half(micro_batch_tokens, length)}"] if micro_batch_tokens > length else []
        return _sentence(
            [*ways, f"lower {section}.sequenceLength", f"set {section}.method: LoRA", _spread(stage, section, gpu, None, processes)]
        )
    again = layers_again(stage, size, layers=size.layers, processes=processes, available=available, micro_batch_tokens=micro_batch_tokens)
    cost, usable = _cost(stage, size, micro_batch_tokens, again), (1 - HEADROOM) * available
    always = _checkpointed(stage)
    stage = always if again else stage
    needed = cost.memory_bytes(processes)
    spread = "whole in each process" if cost.replicated else f"{_gib(cost.state_bytes)} over {processes}"
    told = (
        f"by estimate a process needs {_gib(needed)} of {_gib(available)}: {_gib(cost.state_of_process(processes))} for weights, "
        f"gradients, optimizer ({spread}), {_gib(cost.activation_bytes)} for {micro_batch_tokens} tokens at once"
    )
    ways = []
    if (smaller := _smaller_pass(stage, size, processes, usable, micro_batch_tokens, length)) is not None:
        ways.append(f"set {section}.microBatchTokens: {smaller}")
    alone = parameters.method is Method.QLORA  # trains in one process
    wanted = None if alone else _enough_processes(stage, size, usable, length)
    if wanted is not None and (wanted > processes or (cost.replicated and processes > 1)):
        ways.append(_spread(stage, section, gpu, wanted, processes))
    if needed > usable:
        ways += [
            f"set {section}.{name}: {value} (needs {_gib(lighter)})"
            for name, value in _lighter(parameters, processes)
            if (lighter := _with(stage, name, value, size, processes, length)) <= usable
        ]
    if not ways:
        ways = [f"lower {section}.sequenceLength", *([] if alone else [_spread(stage, section, gpu, None, processes)])]
    if again < size.layers and _cost(always, size, micro_batch_tokens).memory_bytes(processes) <= usable:
        ways.insert(smaller is not None, f"set {section}.activationCheckpointing: Always")
    if not gpu:
        ways.append(f"raise workers.resources.limits.memory to {math.ceil(max(needed, available) / (1 - HEADROOM) / 2**30)}Gi a process")
    return f"{told}. {_sentence(ways)}"


def _checkpointed(stage: StagePlan) -> StagePlan:
    changes = {"activation_checkpointing": ActivationCheckpointing.ALWAYS}
    return stage.model_copy(update={"execution": stage.execution.model_copy(update=changes)})


def _cost(stage: StagePlan, size: ModelSize, micro_batch_tokens: int, layers_again: int | None = None) -> StageCost:
    execution = stage.execution.model_copy(update={"micro_batch_tokens": micro_batch_tokens})
    return stage_cost(stage.model_copy(update={"execution": execution}), size, None, layers_again=layers_again)


def _smaller_pass(stage: StagePlan, size: ModelSize, processes: int, usable: float, now: int, length: int) -> int | None:
    """The largest pass of whole rows that fits, or half of one that should have; None where it is one row already, or none fits."""
    row = _cost(stage, size, length)
    rows = math.floor((usable - row.state_of_process(processes)) / max(1, row.activation_bytes))
    if now <= length or rows < 1:
        return None
    return rows * length if rows * length < now else _half(now, length)


def _enough_processes(stage: StagePlan, size: ModelSize, usable: float, length: int) -> int | None:
    """The fewest processes over which it fits with one row at once, spread over them; None where that alone is too much."""
    row = _cost(stage, size, length)
    room = usable - row.activation_bytes
    return math.ceil(row.state_bytes / room) if room > 0 else None


def _lighter(parameters: TrainingParameters, processes: int) -> list[tuple[str, str]]:
    """Fields and values with which less is kept, the least change first."""
    ways = [("optimizer", Optimizer.ADAMW_8BIT.value)] if parameters.optimizer is Optimizer.ADAMW else []
    later = list(Method)[list(Method).index(parameters.method) + 1 :]
    return [*ways, *(("method", method.value) for method in later if method is not Method.QLORA or processes == 1)]


def _with(stage: StagePlan, name: str, value: str, size: ModelSize, processes: int, length: int) -> int:
    """Bytes of a process with another value of a field, one row at once."""
    lora = stage.parameters["lora"] or (Lora().model_dump(mode="json", by_alias=True) if name == "method" else None)
    parameters = {**stage.parameters, name: value, "lora": lora}
    return _cost(stage.model_copy(update={"parameters": parameters}), size, length).memory_bytes(processes)


def _half(tokens: int, length: int) -> int:
    return max(length, tokens // 2 // length * length)


def _spread(stage: StagePlan, section: str, gpu: bool, wanted: int | None, now: int) -> str:
    """More processes; replicas, which hold as much however many they are, first have to share what they hold."""
    what, field = ("GPUs", f"workers.replicas or {GPU_RESOURCE}") if gpu else ("workers", "workers.replicas")
    if stage.execution.sharding is Sharding.NONE:
        share = f"set {section}.sharding: Full"
        return share if now > 1 and (wanted is None or wanted <= now) else f"{share} and {_more(what, field, wanted, now)}"
    return _more(what, field, wanted, now)


def _more(what: str, field: str, wanted: int | None, now: int) -> str:
    return f"use {f'at least {wanted}' if wanted else 'more'} {what} instead of {now} ({field})"


def _sentence(ways: list[str]) -> str:
    text = ", or ".join(ways)
    return text[0].upper() + text[1:]


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
