"""Active learning: explore with the model, label where it is unsure, learn, know when to stop."""
