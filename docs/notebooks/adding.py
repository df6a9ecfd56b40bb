# %% [markdown]
# # Two skills in one encoder
#
# Two task vectors, made in the tangent space, added with a coefficient that validation rows choose. Run from top to bottom in
# about a minute on two cores.

# %%
import matplotlib.pyplot as plt

import tauspan as ts

encoder = ts.load("minilm")
tasks = [
    task.subset(train=64, validation=48, test=48) for task in ts.suite(["movie_sentiment", "email_spam"])
]
encoder

# %%
settings = ts.Settings("linear", params="last:1", lr=1e-3, max_tokens=16)
vectors = {task: ts.finetune(encoder, task, settings).task_vector for task in tasks}
vectors

# %% [markdown]
# An editor answers every question about these vectors from one pass over the data.

# %%
editor = ts.Editor(encoder, vectors, reading=ts.Reading(max_tokens=16))
added = editor.add()
for row in [*added.tasks, added.mean]:
    print(f"{row.task:16} zero shot {row.zero_shot:.2f}  single {row.single:.2f}  added {row.added:.2f}")

# %% [markdown]
# Accuracy on validation over the coefficient. In the tangent model every point costs one weighted sum.

# %%
alphas = [round(0.1 * step, 1) for step in range(21)]
for task in tasks:
    curve = [editor.evaluate(alpha, tasks=[task], split="validation").tasks[0].accuracy for alpha in alphas]
    plt.plot(alphas, curve, label=task.name)
plt.axvline(added.alpha, color="grey", linestyle=":", label="chosen alpha")
plt.xlabel("alpha")
plt.ylabel("accuracy on validation")
plt.legend()
plt.show()
