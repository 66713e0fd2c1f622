"""Where structures come from: ways through the places where a model may be wrong."""
