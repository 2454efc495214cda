"""longtake: posed video. `longtake.annotate(...)` turns video files into a manifest of posed clips."""
