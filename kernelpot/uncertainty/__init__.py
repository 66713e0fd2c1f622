"""How sure a model is, and how good that is: measures of standard deviations and of novelty."""
