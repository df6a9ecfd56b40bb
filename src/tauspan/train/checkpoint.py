"""The state of a run in one safetensors file: parameters, optimiser moments, step and history."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tauspan import store
from tauspan.core.errors import StoreError
from tauspan.core.params import Params, zip_strict
from tauspan.train.layout import Layout

NAME = "checkpoint.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def save(
    file: Path, parameters: Params, optimiser: torch.optim.Optimizer, state: dict[str, Any], layout: Layout
) -> None:
    """Write parameters, their moments and the plain values of `state` to one file; every process calls this.

    The file holds whole tensors, so a run can be resumed with any number of processes, sharded or not.
    """
    tensors: dict[str, tuple[str, Tensor]] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = name, parameter
        for moment in _MOMENTS:
            if moment in optimiser.state[parameter]:
                tensors[f"{moment}/{name}"] = name, optimiser.state[parameter][moment]
    layout.write(file, tensors, {"tauspan": json.dumps(state)})


@torch.no_grad()
def restore(
    file: Path, key: str, parameters: Params, optimiser: torch.optim.Optimizer, layout: Layout
) -> dict[str, Any]:
    """Load parameters and moments from a checkpoint in place, and return the plain values of its `state`.

    Raises:
        StoreError: the checkpoint belongs to other settings, another base or other data.
    """
    checkpoint = store.Checkpoint(file)
    try:
        state: dict[str, Any] = json.loads(checkpoint.metadata["tauspan"])
        found = state["key"]
    except (KeyError, json.JSONDecodeError) as error:
        raise StoreError(f"{file} is not a checkpoint of this version; delete it to begin anew.") from error
    if found != key:
        raise StoreError(
            f"{file} belongs to other settings, another base or other data (key {found[:12]}, this run {key[:12]}). "
            "Choose another output folder, or delete the checkpoint to begin anew."
        )
    tensors = {name: layout.part(tensor) for name, tensor in checkpoint.read().items()}
    saved = {n.removeprefix("parameter/"): t for n, t in tensors.items() if n.startswith("parameter/")}
    for name, parameter, value in zip_strict(parameters, saved, "the run", str(file)):
        parameter.copy_(value)
        if f"exp_avg/{name}" in tensors:
            slots = {
                moment: tensors[f"{moment}/{name}"].to(parameter.device, copy=True) for moment in _MOMENTS
            }
            step = torch.tensor(float(state["step"]), device=parameter.device)
            optimiser.state[parameter] = {"step": step, **slots}
    return state
