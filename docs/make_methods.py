"""Write docs/methods.md, the table of merging methods, from `tauspan.merge.METHODS`: `python docs/make_methods.py`."""

import json
from pathlib import Path

from tauspan.merge import METHODS, Method

FILE = Path(__file__).parent / "methods.md"
HEAD = """# Merging methods

Made by `python docs/make_methods.py` from the table `tauspan.merge.METHODS`. tau_t is the displacement of model t from
the base, theta_t its weights, w_t its weight. A method in the space *delta* reads displacements, and needs a base or task
vectors; one in the space *point* reads the models themselves. Where task vectors are merged without a base, a method of
the space *point* reads the displacements in their place: `linear` gives the same displacement either way (as long as its
weights are normalised), but `slerp`, `karcher`, `nuslerp_point` and `multislerp_point`, which depend on lengths and
angles from the origin, then turn tau_1 into tau_2 and not theta_1 into theta_2; give them `base` to merge the models.
Sparse methods keep exactly the share of entries that they are asked for, of equal magnitudes those at lower places;
`ties` keeps what its authors' code keeps: int(density n) + 1 entries, and all whose magnitude equals the last one's.
The report says which share of each model was kept. Where a tensor is lacking in a model and that is allowed, see
[formats](formats.md#merge-recipe). *Grain* is the smallest piece it takes at once: single entries, rows of a matrix,
or whole tensors, which decides the memory of a merge. Defaults are the authors' where they give any; a file with
`merge_method:` gets mergekit's instead.

An installed package adds methods by name with entry points of the group `tauspan.methods`, of functions that
`tauspan.merge.own_method` takes, or of a `Method`:

```toml
[project.entry-points."tauspan.methods"]
median = "its_package.rules:median"
```

`merge`, recipes and `tauspan merge --method median` find it then, and `tauspan merge --methods` lists it with its
package. It is imported when it is asked for; one that cannot be is told by name and package, and hinders no other. A
method of the table below keeps its name. The card of a merge holds the package, its version and a hash of the
function's source.
"""


def entry(method: Method) -> str:
    """One method as a section."""
    needs = ", ".join(method.needs) or "nothing else"
    models = f"{method.fewest}" if method.most == method.fewest else f"{method.fewest} or more"
    lines = [
        f"## `{method.name}`", "", f"**{method.title}** ({method.paper})", "", f"    {method.formula}", "",
        f"Models: {models}. Space: {method.space}. Grain: {method.grain}. Needs: {needs}.", "",
    ]  # fmt: skip
    if method.options:
        lines += ["| option | default | meaning |", "|---|---|---|"]
        for option in method.options:
            default = "unset" if option.default is None else json.dumps(option.default)
            each = "; one a model" if option.per_model else ""
            choices = f" ({', '.join(option.choices)})" if option.choices else ""
            lines.append(f"| `{option.name}` | {default} | {option.doc}{choices}{each} |")
        lines.append("")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    names = ", ".join(f"[`{name}`](#{name})" for name in METHODS)
    return "\n".join([HEAD, names, "", *map(entry, METHODS.values())])


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
