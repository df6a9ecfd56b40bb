"""`run`: a recipe from data to report, stage by stage; a finished stage is reused, never done twice."""

from tauspan.run.whole import run

__all__ = ["run"]
