"""torch.compile, a decoder layer at a time: its small operations are fused, and everything around it stays as it is.

Of one layer, since all of them share its code: a model of 30 layers is compiled once, not 30 times, which a change of workers would
pay for again. Of its forward alone, within its hooks, as activations.py replaces it: FSDP2 gathers weights outside, `ComputeTimer`
counts nothing that is compiled away, and no module or parameter changes its name, so checkpoints are those of the plain model.
What is computed again in the backward pass is part of the compiled function.

Compiled are one graph for the rows of a full pass, one for any number of them (the last pass has fewer), one for a single row, and each
twice where only some layers are computed again. Held-out texts are measured by the plain path: no graphs for them alone.

Sums are added up in another order: losses in float32 agree with the plain ones to 1e-6 (relative, tests/trainer/test_compilation.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from transfer_api.spec import Compilation
from transfer_pod.toolchain import check_toolchain
from transfer_trainer.parallel import decoder_layers

BACKEND = "inductor"


def compile_layers(model: nn.Module, device: torch.device, section: str) -> None:
    """Has each decoder layer be compiled at its first pass; after `checkpoint_activations`, before sharding.

    Raises:
        SpecError: there is no compiler here.
        ModelError: the model has no list of decoder layers.
    """
    check_toolchain(section, gpu=device.type == "cuda")
    for layer in decoder_layers(model):
        layer.forward = torch.compile(layer.forward, backend=BACKEND)


@contextlib.contextmanager
def as_it_is(compiled: Compilation) -> Iterator[None]:
    """In it nothing is compiled, and what was is not used."""
    if compiled is Compilation.NONE:  # asking the compiler would import it
        yield
    else:
        with torch.compiler.set_stance("force_eager"):
            yield
