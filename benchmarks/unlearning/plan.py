"""What the study covers, checked once."""

from dataclasses import dataclass

from tauspan.core.errors import UsageError
from tauspan.train import Settings

SMALL = "small"  # the model that the study makes
OTHERS = 10**6  # the seed of the people that the small model knows before


@dataclass(frozen=True)
class Plan:
    """What the study covers.

    Args:
        model: `"small"`, or what `tauspan.load` takes.
        seeds: of people, of the order of rows, of random vectors.
        people: how many the model learns, eight facts each.
        forget: the share of them that it is to forget.
        params: which parameters move.
        tokens: the most tokens of a text.
        epochs: over the facts when they are learned.
        rate: learning rate of that.
        again: epochs over the facts to be forgotten, for their vectors.
        forget_rate: learning rate of these, of gradient ascent and of NPO.
        steps: of gradient ascent, of NPO, and of further training on the kept people.
        every: steps between two looks at the perplexities.
        beta: NPO's inverse temperature.
        floor: the kept people's perplexity on validation may rise to 1 / floor of what it was.
        grid: coefficients of negation.
        batch_size: rows of a step.
        kept: at most so many of the kept people are measured, as many others guard the choices, and as many are made up
            whom no model sees, for the membership test.
        english: texts behind the perplexity of English.
        mails: spam mails to be forgotten, of training; half as many texts are measured.
        samples: texts that a model writes to be judged.
        known: other people whom the small model knows before.
        small_steps: of its training.
        width: of its states.
        layers: its blocks.
        words: its tokens.

    Raises:
        UsageError: a number that leaves nobody to forget, to keep or to measure.
    """

    model: str = SMALL
    seeds: tuple[int, ...] = (0, 1, 2)
    people: int = 60
    forget: float = 0.1
    params: str = "all"
    tokens: int = 48
    epochs: int = 30
    rate: float = 1e-3
    again: int = 10
    forget_rate: float = 3e-4
    steps: int = 60
    every: int = 2
    beta: float = 0.1
    floor: float = 0.95
    grid: tuple[float, ...] = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    batch_size: int = 16
    kept: int = 24
    english: int = 200
    mails: int = 400
    samples: int = 200
    known: int = 80
    small_steps: int = 2000
    width: int = 128
    layers: int = 2
    words: int = 1024

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"seeds={list(self.seeds)}: at least one, and none twice.")
        if not 0 < self.forgotten < self.people:
            raise UsageError(
                f"people={self.people}, forget={self.forget:g}: {self.forgotten} people are forgotten and "
                f"{self.people - self.forgotten} kept, and there must be at least one of each."
            )
        for name in ("kept", "english", "mails", "samples", "steps", "every", "epochs", "again"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: at least 1.")

    @property
    def forgotten(self) -> int:
        """How many people are forgotten."""
        return round(self.people * self.forget)

    def learning(self, seed: int) -> Settings:
        """How facts are learned."""
        return Settings("standard", seed=seed, params=self.params, epochs=self.epochs, lr=self.rate,
                        batch_size=self.batch_size, weight_decay=0.0)  # fmt: skip

    def vector(self, regime: str, seed: int) -> Settings:
        """How a vector of the facts to be forgotten is made."""
        return Settings("linear" if regime == "linear" else "standard", seed=seed, params=self.params,
                        epochs=self.again, lr=self.forget_rate, batch_size=self.batch_size)  # fmt: skip
