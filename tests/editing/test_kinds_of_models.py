"""Whole vectors of sequence-to-sequence and masked models, their token tables too, against the whole model in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

import tauspan as ts
from helpers import languages
from helpers.zoo import normal
from tauspan.models import fingerprint_of
from tauspan.models.extras import quiet
from tauspan.tasks import SPLITS, Task

LENGTH = 12
# T5's norms compute in float32 whatever the model's dtype
KINDS = {"t5": 1e-6, "t5 unscaled": 1e-6, "bart": 1e-10, "bert": 1e-10, "distilbert": 1e-10}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_the_whole_model_in_each_regime(kind: str, tmp_path: Path) -> None:
    home = languages.write(tmp_path / "model", kind)
    encoder = ts.load(home, language=LENGTH).double()
    language = encoder.language
    assert language is not None
    with quiet(transformers):
        full: Any = (
            getattr(transformers, language.family).from_pretrained(home, dtype=torch.float32).double().eval()
        )
    rows: Any = (["2 + 3 = 5", "1 + 1 = 2"], [8, 8] if kind in languages.SEQ2SEQ else None)
    word = language.words[0]
    of = Task.from_tensors("t", [], objective=word, **dict.fromkeys(SPLITS, rows))
    read = of.objective.rows(rows[0], of.split("test").labels, language)
    theta = {name: p.detach() for name, p in full.named_parameters()}
    tau = {name: 0.1 * normal(*p.shape, seed=place) for place, (name, p) in enumerate(theta.items())}
    pairs = [language.read([row], None) for row in read]

    def loss(regime: str, scale: float) -> float:
        found = []
        for batch, wanted in pairs:

            def run(point: Any, batch: Any = batch) -> torch.Tensor:
                logits: torch.Tensor = functional_call(full, point, (), dict(batch)).logits
                return logits

            if regime == "standard":
                logits = run({name: theta[name] + scale * tau[name] for name in theta})
            else:
                with sdpa_kernel(SDPBackend.MATH):
                    value, moved = jvp(run, (theta,), (tau,))
                logits = value + scale * moved
            found.append(F.cross_entropy(logits[0], wanted[0], ignore_index=-100))
        return float(torch.stack(found).mean())

    for regime in ("standard", "linear"):
        vector = ts.TaskVector(dict(tau), fingerprint_of(encoder), regime, "v")  # type: ignore[arg-type]
        for scale in (0.0, 0.7, -1.3):
            found = ts.evaluate(encoder, [of], vector, scale).tasks[0].loss
            assert found == pytest.approx(loss(regime, scale), rel=KINDS[kind]), (regime, scale)
