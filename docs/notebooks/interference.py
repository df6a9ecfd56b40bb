# %% [markdown]
# # Who disturbs whom?
#
# The disentanglement error xi of two tasks over both coefficients, and how far each vector moves each task's outputs. Run from
# top to bottom in about a minute on two cores.

# %%
import matplotlib.pyplot as plt

import tauspan as ts

encoder = ts.load("minilm")
tasks = [
    task.subset(train=64, validation=32, test=48) for task in ts.suite(["movie_sentiment", "email_spam"])
]
settings = ts.Settings("linear", params="last:1", lr=1e-3, max_tokens=16)
vectors = {task: ts.finetune(encoder, task, settings).task_vector for task in tasks}
editor = ts.Editor(encoder, vectors, reading=ts.Reading(max_tokens=16))
editor

# %% [markdown]
# How far each vector alone moves the outputs on the rows of each task, relative to their size:

# %%
drift = editor.interference().drift
for rows_of, line in drift.items():
    print(f"{rows_of:16}", "  ".join(f"{of} {value:.2f}" for of, value in line.items()))

# %% [markdown]
# xi(a1, a2): the share of rows whose prediction changes when the other vector is added, summed over both tasks. It is 0 on the
# axes, where there is no other vector.

# %%
maps = editor.maps(grid=[-1, -0.5, 0, 0.5, 1])
series = next(one for one in maps.report().series if one["kind"] == "xi")
plt.imshow(series["xi"], origin="lower", extent=(-1.25, 1.25, -1.25, 1.25), vmin=0)
plt.xlabel(f"coefficient of {series['tasks'][1]}")
plt.ylabel(f"coefficient of {series['tasks'][0]}")
plt.colorbar(label="xi")
plt.show()
print(f"mean over the box of [0, 1]: {series['mean']:.3f} ± {series['mean_stderr']:.3f}")
