"""A server for a run on this machine alone: edits of any regime evaluated live, mixes written, progress watched."""
