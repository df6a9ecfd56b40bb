"""Many jobs over several worker processes or a cluster; a finished job is never done again.

```text
driver     sweep: which jobs are open, running, done or failed
job        Job: a named call, checked before anything starts
results    the folder: results, logs, locks
pool       worker processes of this machine; what a backend is
worker     the program that a worker process runs; it imports no torch
executors  jobs through any executor of `concurrent.futures`
cluster    Ray as such an executor
table      the live table
```
"""

from tauspan.experiments.sweep.driver import sweep
from tauspan.experiments.sweep.job import Job

__all__ = ["Job", "sweep"]
