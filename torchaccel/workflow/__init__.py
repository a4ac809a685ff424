"""The main job: optimize with its gates, benchmark, checkpoint, doctor."""
