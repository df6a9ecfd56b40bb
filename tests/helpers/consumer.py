"""What a user of the installed package writes; `mypy --strict` must pass. It is read by the type checker, not run."""

import tauspan as ts
from tauspan.editing import Addition

encoder = ts.load("minilm")
tasks = ts.suite(["email_spam", "debian_section"])
vectors = {task: ts.finetune(encoder, task, ts.Settings("linear")).task_vector for task in tasks}
added: Addition = ts.add(encoder, vectors, reading=ts.Reading(max_tokens=16))
means: list[float | None] = [row.added for row in added.tasks]
scaled: ts.TaskVector = 0.5 * vectors[tasks[0]] - vectors[tasks[1]]
edited = added.apply()
report: str = added.report().to_markdown()
