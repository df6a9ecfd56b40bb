"""`PYTHON merge_oracle.py JOBS`: what mergekit and PEFT make of small models; runs in their environment."""

import inspect
import json
import sys
import warnings
from pathlib import Path
from typing import Any


def merges(jobs: list[dict[str, str]]) -> dict[str, str]:
    """Run mergekit for each recipe; errors by name."""
    from mergekit.scripts.merge_raw_pytorch import main

    failed = {}
    for job in jobs:
        try:
            main([job["recipe"], job["out"], "--quiet"], standalone_mode=False)
        except Exception as error:  # whatever it raises is the result
            failed[job["name"]] = f"{type(error).__name__}: {error}"
    return failed


def functions(jobs: list[dict[str, Any]]) -> None:
    """PEFT's merging functions on displacements, tensor by tensor."""
    import torch
    from peft.utils import merge_utils
    from safetensors.torch import load_file, save_file

    for job in jobs:
        deltas = [load_file(file) for file in job["deltas"]]
        function = getattr(merge_utils, job["function"])
        options = {key: value for key, value in job.items() if key in inspect.signature(function).parameters}
        weights = torch.tensor(job["weights"])
        made = {n: function([d[n] for d in deltas], **{**options, "weights": weights}) for n in deltas[0]}
        save_file(made, job["out"])


def adapters(folder: Path, weights: list[float]) -> None:
    """Adapters of a small BERT, what each makes of it, and PEFT's weighted sums of two."""
    import torch
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import save_file

    def fresh() -> Any:
        torch.manual_seed(0)
        sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 36}
        return transformers.BertModel(
            transformers.BertConfig(vocab_size=40, max_position_embeddings=16, **sizes)
        )

    def save(model: Any, file: Path) -> None:
        save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, file)

    save(fresh(), folder / "base.safetensors")
    common = {"r": 4, "lora_alpha": 12, "target_modules": ["query", "value"]}
    kinds: dict[str, dict[str, Any]] = {
        "one": {}, "two": {}, "rslora": {"use_rslora": True}, "bias": {"bias": "all"},
        "pattern": {"rank_pattern": {"layer.1.attention.self.query": 2}, "alpha_pattern": {"value": 5}},
    }  # fmt: skip
    for seed, (name, own) in enumerate(kinds.items()):
        model = get_peft_model(fresh(), LoraConfig(**common, **own))
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
        save(model.merge_and_unload(), folder / f"{name}.safetensors")
    for kind in ("linear", "cat", "svd"):
        model = PeftModel.from_pretrained(fresh(), folder / "one", adapter_name="one")
        model.load_adapter(folder / "two", adapter_name="two")
        rank = {"svd_rank": 3} if kind == "svd" else {}
        model.add_weighted_adapter(["one", "two"], weights, "sum", combination_type=kind, **rank)
        model.set_adapter("sum")
        save(model.merge_and_unload(adapter_names=["sum"]), folder / f"sum-{kind}.safetensors")


def main(file: Path) -> None:
    """Do all jobs, and write what failed beside them."""
    warnings.simplefilter("ignore")
    jobs = json.loads(file.read_text())
    failed = merges(jobs["merges"])
    functions(jobs["functions"])
    adapters(Path(jobs["adapters"]), jobs["weights"])
    file.with_suffix(".failed.json").write_text(json.dumps(failed))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
